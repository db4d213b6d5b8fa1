//! A real PostgreSQL server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use crate::certificates::Certificate;
use crate::guard::{self, Folder};
use crate::process::{self, Launch, Program, Signal};
use crate::{Error, cache, net, wait};

/// Generous: crash recovery on a busy machine is included.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// Fixed, because it guards nothing: the server listens on the loopback address and lives for one test.
pub(crate) const PASSWORD: &str = "testbed-password";

/// A major version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PgVersion {
    /// 15, the oldest the platform supports.
    V15,
    /// 17, the first with failover slots.
    V17,
    /// 18.
    #[default]
    V18,
}

impl PgVersion {
    /// The release that is fetched.
    fn release(self) -> &'static str {
        match self {
            PgVersion::V15 => "15.15.0",
            PgVersion::V17 => "17.8.0",
            PgVersion::V18 => "18.4.0",
        }
    }

    /// The version `15`, `17` or `18` stands for.
    pub fn from_major(major: u32) -> Option<PgVersion> {
        match major {
            15 => Some(PgVersion::V15),
            17 => Some(PgVersion::V17),
            18 => Some(PgVersion::V18),
            _ => None,
        }
    }
}

/// How clients over TCP prove who they are. Over the Unix socket every client is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    #[default]
    Trust,
    /// SCRAM-SHA-256.
    Scram,
    /// Over TLS a client certificate alone, whose common name is the role; without TLS SCRAM-SHA-256.
    Certificate,
}

/// What server to start.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Version.
    pub version: PgVersion,
    /// Lines of `postgresql.conf`, after the testbed's own (`wal_level = logical`).
    pub settings: Vec<(String, String)>,
    /// Whether commits wait for the disk. Off for tests, on for measurements.
    pub fsync: bool,
    /// Authentication over TCP.
    pub auth: Auth,
    /// TLS; none is offered without.
    pub tls: Option<ServerTls>,
}

/// How a server speaks TLS. Connections over TCP without TLS remain possible: a client that falls back to them is to
/// be caught at it. With [`Auth::Scram`] over TLS the server also offers SCRAM-SHA-256-PLUS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// What it presents.
    pub certificate: Certificate,
    /// The CA (PEM) of client certificates, which are then demanded of every TLS connection.
    pub client_authority: Option<String>,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
    /// Waits for sessions to end.
    Smart,
}

/// A running, stopped or killed server. Dropping it ends it and removes its files.
pub struct Postgres {
    binaries: PathBuf,
    options: PostgresOptions,
    port: u16,
    program: Option<Program>,
    folder: Folder,
}

impl Postgres {
    /// Fetches the server if need be, makes a cluster and starts it.
    ///
    /// # Errors
    /// A tool is missing, the registry cannot be reached, or the server does not come up; the error shows its log.
    pub async fn start(options: PostgresOptions) -> Result<Postgres, Error> {
        let version = options.version;
        let (binaries, template) = tokio::task::spawn_blocking(move || {
            let binaries = binaries(version)?;
            let template = template(version, &binaries)?;
            Ok::<_, Error>((binaries, template))
        })
        .await
        .map_err(|join| Error::system("prepare PostgreSQL")(std::io::Error::other(join)))??;
        let folder = Folder::new("postgres")?;
        let data = folder.path().join("data");
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&template).arg(&data);
        cache::run(&mut copy, "cp", "coreutils", "copying a cluster")?;
        let port = net::free_port()?;
        let mut postgres = Postgres { binaries, options, port, program: None, folder };
        postgres.configure(&data)?;
        if let Some(tls) = &postgres.options.tls {
            postgres.present(&tls.certificate)?;
        }
        postgres.start_again().await?;
        if postgres.password().is_some() {
            let set = format!("ALTER USER postgres PASSWORD '{PASSWORD}'");
            postgres.execute_locally(&set).await?;
        }
        Ok(postgres)
    }

    /// Starts a stopped or killed server on the same port, and waits until it accepts connections.
    pub async fn start_again(&mut self) -> Result<(), Error> {
        let data = self.folder.path().join("data");
        // Left by a killed server; its number may belong to another process by now.
        drop(fs::remove_file(data.join("postmaster.pid")));
        let program = Launch::new("PostgreSQL", self.binaries.join("bin/postgres"))
            .arg("-D")
            .arg(&data)
            .log_to(self.folder.path().join("log"))
            .unprivileged()
            .start()?;
        let program = self.program.insert(program);
        let options = local_options(&self.folder, self.port);
        wait::until("a PostgreSQL that accepts connections", READY_WITHIN, async || {
            if program.exit_status().is_some() {
                return Ok(Err(program.ended_early()));
            }
            match options.clone().connect().await {
                Ok(connection) => {
                    drop(connection.close().await);
                    Ok(Ok(()))
                }
                Err(error) => Err(error),
            }
        })
        .await?
    }

    /// Starts a stopped server as a standby, without a primary if none is configured: it recovers, and accepts no
    /// writes, until it is promoted (`SELECT pg_promote()`), which begins a new timeline.
    pub async fn start_as_standby(&mut self) -> Result<(), Error> {
        let signal = self.folder.path().join("data/standby.signal");
        fs::write(&signal, "").map_err(Error::file("write", &signal))?;
        self.start_again().await
    }

    /// Starts a streaming standby of this server that reads its physical slot `slot`, and synchronises failover slots
    /// (PostgreSQL 17 and newer). This server restarts: its files are copied while it is stopped.
    ///
    /// # Errors
    /// A server does not stop or start, or the files cannot be copied.
    pub async fn start_streaming_standby(&mut self, slot: &str) -> Result<Postgres, Error> {
        self.stop(Shutdown::Fast).await?;
        let folder = Folder::new("postgres")?;
        let data = folder.path().join("data");
        copy_folder(&self.folder.path().join("data"), &data)?;
        // As pg_basebackup, which leaves out the slots of the primary.
        let slots = data.join("pg_replslot");
        fs::remove_dir_all(&slots)
            .and_then(|()| fs::create_dir(&slots))
            .map_err(Error::file("empty", &slots))?;
        guard::give_away(&slots)?;
        let (binaries, options, port) = (self.binaries.clone(), self.options.clone(), net::free_port()?);
        let mut standby = Postgres { binaries, options, port, program: None, folder };
        self.start_again().await?;
        standby.follow(self, slot).await?;
        Ok(standby)
    }

    /// Starts a stopped server as a streaming standby of `primary`. The physical slot `slot` of the primary is created
    /// if it does not exist.
    ///
    /// # Errors
    /// The settings cannot be written, or the server does not start.
    pub async fn follow(&mut self, primary: &Postgres, slot: &str) -> Result<(), Error> {
        let create = format!(
            "SELECT pg_create_physical_replication_slot('{slot}', true)
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
        );
        primary.execute_locally(&create).await?;
        let standby = [
            (
                "primary_conninfo",
                format!("host=127.0.0.1 port={} user=postgres dbname=postgres", primary.port),
            ),
            ("primary_slot_name", slot.to_owned()),
            ("hot_standby_feedback", "on".to_owned()),
        ];
        let synchronises = [("sync_replication_slots", "on".to_owned())];
        let synchronises = synchronises.into_iter().filter(|_| self.options.version != PgVersion::V15);
        let settings = standby.into_iter().chain(synchronises);
        self.options.settings.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        self.configure(&self.folder.path().join("data"))?;
        self.start_as_standby().await
    }

    /// Copies the data of a stopped server, for [`Postgres::restore`].
    ///
    /// # Errors
    /// The files cannot be copied.
    pub fn keep_copy(&self) -> Result<(), Error> {
        self.copy("data", "kept")
    }

    /// Puts the copy back in place of a stopped server's data, as a restored disk would: it continues from there on the
    /// same timeline.
    ///
    /// # Errors
    /// The files cannot be copied.
    pub fn restore(&self) -> Result<(), Error> {
        self.copy("kept", "data")
    }

    fn copy(&self, from: &str, to: &str) -> Result<(), Error> {
        let [from, to] = [from, to].map(|name| self.folder.path().join(name));
        copy_folder(&from, &to)
    }

    /// Stops it in order.
    pub async fn stop(&mut self, how: Shutdown) -> Result<(), Error> {
        self.ask_to_stop(how)?;
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.wait(STOPPED_WITHIN).await.map(drop)
    }

    /// Asks it to stop; does not wait.
    pub fn ask_to_stop(&self, how: Shutdown) -> Result<(), Error> {
        let signal = match how {
            Shutdown::Fast => Signal::Int,
            Shutdown::Immediate => Signal::Quit,
            Shutdown::Smart => Signal::Term,
        };
        self.program.as_ref().map_or(Ok(()), |program| program.signal(signal))
    }

    /// kill -9 of the server and all its processes, as when the machine fails.
    pub async fn kill(&mut self) -> Result<(), Error> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        let children = process::children(program.pid());
        program.kill().await?;
        process::send(Signal::Kill, &children)?;
        // Memory they share keeps the next server from starting.
        wait::until("the end of PostgreSQL's processes", STOPPED_WITHIN, async || {
            let left: Vec<u32> = children.iter().copied().filter(|pid| process::is_alive(*pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are alive")) }
        })
        .await
    }

    /// SIGSTOP to the server and all its processes.
    pub fn pause(&self) -> Result<(), Error> {
        process::send(Signal::Stop, &self.processes())
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), Error> {
        process::send(Signal::Cont, &self.processes())
    }

    fn processes(&self) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let mut all = vec![pid];
        all.extend(process::children(pid));
        all
    }

    /// Process number of the postmaster while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.program.as_ref().map(Program::pid)
    }

    /// Whether it ended without being told to here.
    pub fn has_ended(&mut self) -> bool {
        self.program.as_mut().is_some_and(|program| program.exit_status().is_some())
    }

    /// TCP port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of the Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.folder.path()
    }

    /// The superuser's password over TCP, where one is needed.
    pub fn password(&self) -> Option<&'static str> {
        (self.options.auth != Auth::Trust).then_some(PASSWORD)
    }

    /// Address of a database for the superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        let password = self.password().map(|password| format!(":{password}")).unwrap_or_default();
        // The testbed itself has no client certificate to show.
        let plain = if self.options.tls.is_some() { "?sslmode=disable" } else { "" };
        format!("postgres://postgres{password}@127.0.0.1:{}/{database}{plain}", self.port)
    }

    /// Gives the server another certificate, from its next start on.
    pub fn present(&self, certificate: &Certificate) -> Result<(), Error> {
        certificate.write(&self.folder.path().join("data"), "server").map(drop)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn execute_locally(&self, sql: &str) -> Result<(), Error> {
        let failed = Error::postgres("setting the cluster up");
        let mut connection: PgConnection = match local_options(&self.folder, self.port).connect().await {
            Ok(connection) => connection,
            Err(error) => return Err(failed(error)),
        };
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(failed)?;
        drop(connection.close().await);
        Ok(())
    }

    fn configure(&self, data: &Path) -> Result<(), Error> {
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{}'", self.folder.path().display()),
            "wal_level = logical".to_owned(),
            "max_replication_slots = 60".to_owned(),
            "max_wal_senders = 60".to_owned(),
            "max_connections = 200".to_owned(),
            "shared_buffers = 64MB".to_owned(),
            format!("fsync = {}", if self.options.fsync { "on" } else { "off" }),
            "log_min_messages = warning".to_owned(),
        ];
        lines.extend(self.options.settings.iter().map(|(name, value)| format!("{name} = '{value}'")));
        if let Some(tls) = &self.options.tls {
            lines.extend(["ssl = on".to_owned(), "ssl_cert_file = 'server.pem'".to_owned()]);
            lines.push("ssl_key_file = 'server.key'".to_owned());
            if let Some(authority) = &tls.client_authority {
                let path = data.join("clients.pem");
                fs::write(&path, authority).map_err(Error::file("write", &path))?;
                lines.push("ssl_ca_file = 'clients.pem'".to_owned());
            }
        }
        let path = data.join("postgresql.conf");
        fs::write(&path, lines.join("\n") + "\n").map_err(Error::file("write", &path))?;
        let over_tcp = match self.options.auth {
            Auth::Trust => "trust",
            Auth::Scram | Auth::Certificate => "scram-sha-256",
        };
        let over_tls = match &self.options.tls {
            None => String::new(),
            Some(_) if self.options.auth == Auth::Certificate => {
                "hostssl all all 127.0.0.1/32 cert\n".to_owned()
            }
            Some(ServerTls { client_authority: None, .. }) => {
                format!("hostssl all all 127.0.0.1/32 {over_tcp}\n")
            }
            Some(_) => format!("hostssl all all 127.0.0.1/32 {over_tcp} clientcert=verify-ca\n"),
        };
        let rules = format!(
            "local all all trust\nlocal replication all trust\n{over_tls}\
             host all all 127.0.0.1/32 {over_tcp}\nhost replication all 127.0.0.1/32 {over_tcp}\n"
        );
        let path = data.join("pg_hba.conf");
        fs::write(&path, rules).map_err(Error::file("write", &path))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let processes = self.processes();
        drop(process::send(Signal::Kill, &processes));
        self.program = None;
    }
}

/// Replaces `to`. Owners and modes are kept, which PostgreSQL is particular about.
fn copy_folder(from: &Path, to: &Path) -> Result<(), Error> {
    let copied = || {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
        if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("cp ended with {status}"))) }
    };
    copied().map_err(Error::file("copy", from))
}

fn local_options(folder: &Folder, port: u16) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(folder.path())
        .port(port)
        .username("postgres")
        .database("postgres")
}

pub(crate) fn binaries(version: PgVersion) -> Result<PathBuf, Error> {
    let release = version.release();
    let machine = match std::env::consts::ARCH {
        "aarch64" => "linux-arm64v8",
        _ => "linux-amd64",
    };
    let said = format!("fetching PostgreSQL {release} (15 MB)");
    cache::entry(&format!("postgres-{release}"), &said, |folder| {
        let artifact = format!("io.zonky.test.postgres:embedded-postgres-binaries-{machine}:{release}:jar");
        cache::fetch_artifact(&artifact, folder)?;
        let jar = only_file(folder, "jar")?;
        let mut jar_tool = Command::new("jar");
        jar_tool.arg("-xf").arg(&jar).current_dir(folder);
        cache::run(&mut jar_tool, "jar", "a JDK, 17 or newer", "unpacking PostgreSQL")?;
        let archive = only_file(folder, "txz")?;
        let mut tar = Command::new("tar");
        tar.arg("-xJf").arg(&archive).arg("-C").arg(folder);
        cache::run(&mut tar, "tar", "'tar' and 'xz-utils'", "unpacking PostgreSQL")?;
        for unpacked in [jar, archive] {
            fs::remove_file(&unpacked).map_err(Error::file("remove", &unpacked))?;
        }
        Ok(())
    })
}

/// A cluster that only has to be copied: making one takes seconds.
fn template(version: PgVersion, binaries: &Path) -> Result<PathBuf, Error> {
    let name = format!("postgres-{}-cluster", version.release());
    let entry = cache::entry(&name, "making an empty database cluster", |folder| {
        guard::give_away(folder)?;
        let mut initdb = Command::new(binaries.join("bin/initdb"));
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(folder.join("data"));
        let initdb = guard::unprivileged(&mut initdb);
        cache::run(initdb, "initdb", "nothing: it was fetched and should be there", "initdb")
    })?;
    Ok(entry.join("data"))
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf, Error> {
    let found =
        cache::files(folder)?.into_iter().find(|path| path.extension().is_some_and(|e| e == extension));
    found.ok_or_else(|| Error::file("find the unpacked file in", folder)(std::io::ErrorKind::NotFound.into()))
}
