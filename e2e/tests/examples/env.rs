//! What an example needs: the writer's database with an outbox, a relay, a topic, and the consumer's database.

use std::path::Path;

use lab::build;
use testbed::guard::Folder;
use testbed::kafka::create_topic;
use testbed::process::{Launch, Program};
use testbed::{Database, net, shared, unique, wait};

use crate::{PROGRAMS, TIMEOUT};

/// Enough for two consumers to have some each.
const PARTITIONS: i32 = 4;

pub struct Env {
    pub writer: Database,
    pub consumer: Database,
    pub bootstrap: String,
    pub topic: String,
    pub group: String,
    _relay: Program,
    _folder: Folder,
}

impl Env {
    /// Starts the relay and waits until it streams.
    pub async fn start(purpose: &str) -> Env {
        let server = shared().await.unwrap();
        let postgres = server.postgres_url("postgres");
        let bootstrap = server.kafka_bootstrap().to_owned();
        let writer = Database::empty_on(&postgres, "writer").await.unwrap();
        for migration in testbed::outbox_migrations().unwrap() {
            writer.execute(&migration).await.unwrap();
        }
        writer.execute(&read("examples/writer/schema.sql")).await.unwrap();
        let consumer = Database::empty_on(&postgres, "consumer").await.unwrap();
        consumer.execute(&read("examples/consumer/schema.sql")).await.unwrap();
        let name = unique(purpose);
        let topic = format!("{name}.account");
        create_topic(&bootstrap, &topic, PARTITIONS, 1, &[]).await.unwrap();
        let folder = Folder::new("examples").unwrap();
        let relay = start_relay(&writer, &bootstrap, &name, folder.path()).await;
        Env { writer, consumer, bootstrap, topic, group: name, _relay: relay, _folder: folder }
    }

    /// The program with what every consumer is told.
    pub fn consumer(&self, program: Launch) -> Launch {
        program
            .env("DATABASE_URL", self.consumer.url())
            .env("KAFKA_BOOTSTRAP_SERVERS", &self.bootstrap)
            .env("KAFKA_TOPIC", &self.topic)
            .env("KAFKA_GROUP", &self.group)
    }
}

async fn start_relay(database: &Database, bootstrap: &str, name: &str, folder: &Path) -> Program {
    let postgres = url::Url::parse(database.url()).unwrap().port().unwrap();
    let (admin, database) = (net::free_port().unwrap(), database.name());
    let config = folder.join("relay.yaml");
    let text = format!(
        "version: 1\n\
         name: {name}\n\
         source:\n\
         \x20 host: 127.0.0.1\n\
         \x20 port: {postgres}\n\
         \x20 tls: {{mode: disable}}\n\
         \x20 database: {database}\n\
         \x20 user: postgres\n\
         \x20 table: public.outbox\n\
         \x20 publication: {{name: outbox}}\n\
         \x20 slot: {{name: {name}}}\n\
         sink:\n\
         \x20 bootstrapServers: '{bootstrap}'\n\
         \x20 tls: {{mode: disable}}\n\
         routing:\n\
         \x20 replacement: {name}.$1\n\
         admin:\n\
         \x20 listen: 127.0.0.1:{admin}\n"
    );
    std::fs::write(&config, text).unwrap();
    let program = PROGRAMS.join("outbox-relay");
    let mut relay =
        Launch::new("outbox-relay", program).arg("run").arg("--config").arg(config).start().unwrap();
    let ready = format!("http://127.0.0.1:{admin}/readyz");
    wait::until("a relay that streams", TIMEOUT, async || {
        assert_eq!(relay.exit_status(), None, "{}", relay.log_tail());
        let answer = reqwest::get(&ready).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
    })
    .await
    .unwrap();
    relay
}

/// A file of the repository.
pub fn read(file: &str) -> String {
    std::fs::read_to_string(build::repository().join(file)).unwrap()
}
