//! A connection pooler in front of PostgreSQL is named as such, whether it refuses replication or forwards it.

use std::io;
use std::sync::{Arc, Mutex};

use testbed::shared;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::Site;
use crate::misconfiguration::shows;

/// How a pooler handles replication connections.
#[derive(Clone, Copy, PartialEq)]
enum Replication {
    /// Like PgBouncer before 1.23.
    Refused,
    /// Like PgBouncer since 1.23.
    Passed,
}

const SSL_REQUEST: u32 = 80_877_103;
const TERMINATE: u8 = b'X';
/// The last message that a client sends before it waits.
const ENDS: [u8; 2] = [b'Q', b'S'];

/// Transaction pooling: a client has a server connection from its first statement until no transaction is open.
struct Pooler {
    server: u16,
    replication: Replication,
    idle: Mutex<Vec<TcpStream>>,
}

impl Pooler {
    /// Returns the port to connect to.
    async fn start(server: u16, replication: Replication) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pooler = Arc::new(Pooler { server, replication, idle: Mutex::default() });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&pooler).serve(client));
            }
        });
        port
    }

    async fn serve(self: Arc<Self>, mut client: TcpStream) -> io::Result<()> {
        let startup = startup(&mut client).await?;
        let has = |name: &str| startup.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        let unsupported = |name| refusal(&format!("unsupported startup parameter: {name}"));
        if has("\0replication\0") && self.replication == Replication::Refused {
            return client.write_all(&unsupported("replication")).await;
        }
        if has("\0options\0") || has("\0bytea_output\0") {
            return client.write_all(&unsupported("options")).await;
        }
        let mut server = TcpStream::connect(("127.0.0.1", self.server)).await?;
        server.write_all(&startup).await?;
        let mut greeting = answer(&mut server).await?;
        name_another_process(&mut greeting);
        client.write_all(&greeting).await?;
        if has("\0replication\0") {
            return copy_bidirectional(&mut client, &mut server).await.map(drop);
        }
        self.idle.lock().unwrap().push(server);
        loop {
            let mut server = None;
            loop {
                let request = request(&mut client).await?;
                let free = self.idle.lock().unwrap().pop();
                let mut connection = match server.take().or(free) {
                    Some(connection) => connection,
                    None => {
                        let mut fresh = TcpStream::connect(("127.0.0.1", self.server)).await?;
                        fresh.write_all(&startup).await?;
                        answer(&mut fresh).await?;
                        fresh
                    }
                };
                connection.write_all(&request).await?;
                let answer = answer(&mut connection).await?;
                client.write_all(&answer).await?;
                let in_transaction = answer.last() != Some(&b'I');
                if !in_transaction {
                    self.idle.lock().unwrap().push(connection);
                    break;
                }
                server = Some(connection);
            }
        }
    }
}

/// The startup message, with its length.
async fn startup(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await?;
        let mut message = vec![0; length as usize];
        message[..4].copy_from_slice(&length.to_be_bytes());
        client.read_exact(&mut message[4..]).await?;
        if message[4..8] != SSL_REQUEST.to_be_bytes() {
            return Ok(message);
        }
        client.write_all(b"N").await?;
    }
}

/// One message with its tag and length.
async fn message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (tag, length) = (stream.read_u8().await?, stream.read_u32().await?);
    let mut message = [&[tag][..], &length.to_be_bytes()].concat();
    message.resize(1 + length as usize, 0);
    stream.read_exact(&mut message[5..]).await?;
    Ok(message)
}

async fn request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        let part = message(client).await?;
        if part[0] == TERMINATE {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        request.extend_from_slice(&part);
        if ENDS.contains(&part[0]) {
            return Ok(request);
        }
    }
}

/// Everything up to ReadyForQuery.
async fn answer(server: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        let part = message(server).await?;
        answer.extend_from_slice(&part);
        if part[0] == b'Z' {
            return Ok(answer);
        }
    }
}

/// Poolers invent the key by which a client cancels a query.
fn name_another_process(greeting: &mut [u8]) {
    let mut at = 0;
    while at < greeting.len() {
        let length = u32::from_be_bytes(greeting[at + 1..at + 5].try_into().unwrap()) as usize;
        if greeting[at] == b'K' {
            greeting[at + 5..at + 9].copy_from_slice(&1_u32.to_be_bytes());
        }
        at += 1 + length;
    }
}

/// An error as PgBouncer sends it: without the field of the untranslated severity.
fn refusal(text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0C08P01\0M{text}\0\0");
    [b"E", &(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes()].concat()
}

#[tokio::test]
async fn a_pooler_is_named_whether_it_refuses_replication_or_forwards_it() {
    let url = shared().await.unwrap().postgres_url("postgres");
    let server = url.parse::<sqlx::postgres::PgConnectOptions>().unwrap().get_port();
    for replication in [Replication::Refused, Replication::Passed] {
        let site = Site::shared().await;
        let port = Pooler::start(server, replication).await;
        let through = |text: String| text.replace(&format!("port: {server}"), &format!("port: {port}"));
        let relay = site.launch(through);
        shows(&relay, "ConnectionPooler", "do not work through a pooler").await;
        let text = relay.status_text().await;
        assert!(text.contains("a connection pooler, such as PgBouncer, answers at 127.0.0.1"), "{text}");
        let doctor = site.command(relay.admin, through, &["doctor"]).await;
        assert_eq!(doctor.code, Some(69), "{doctor:?}");
        assert!(doctor.out.contains("a connection pooler, such as PgBouncer"), "{doctor:?}");
        let slots = format!("count(*) FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
        assert_eq!(site.value(&format!("SELECT {slots}")).await.as_deref(), Some("0"), "no slot was created");
    }
}
