//! A logical replication connection that takes commands and does not stream yet.

use std::time::{Duration, Instant};

use postgres_protocol::message::frontend;
use tokio::time::timeout;

use crate::command::{self, CreatedSlot, PgOutput, Row, SlotOptions, SystemIdentity};
use crate::connection::Connection;
use crate::hosts::Route;
use crate::report::{Notices, server_error};
use crate::socket::Socket;
use crate::startup::{self, ServerParameters};
use crate::timeline::TimelineHistory;
use crate::wire::{Reader, WireError};
use crate::{ConnectOptions, EndLsn, Error, Host, Notice, Stream, Target, hosts, settings};

/// The first timeline of a cluster, as initdb creates it.
const FIRST_TIMELINE: u32 = 1;

/// A connection in replication mode to one database, ready for commands.
///
/// A command that is abandoned (its future dropped before it completed) makes the connection unusable; the next command
/// returns an error.
pub struct Client {
    connection: Connection,
    route: Route,
    parameters: ServerParameters,
    /// The process ID of the server process differs from the one the server announced.
    pooled: bool,
    notices: Notices,
    answer_limit: Duration,
    /// The fastest response to a command so far.
    round_trip: Duration,
    /// The result of a command has not been read completely.
    busy: bool,
}

impl Client {
    /// Connects and authenticates: trust, md5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS; a password is sent in clear text
    /// only over TLS that has verified the server. Tries the hosts in order, and each of their addresses, until one can be used.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Timeout`] after `connect_timeout`, [`Error::Tls`], [`Error::Auth`],
    /// [`Error::ReadOnly`], and [`Error::Server`]: classes 28 (authentication), 3D (database),
    /// [`INSUFFICIENT_PRIVILEGE`](crate::SqlState::INSUFFICIENT_PRIVILEGE) (no REPLICATION), or 53 and 57 (not
    /// available now). [`Error::NoServer`] with all of them when several servers were tried.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, Error> {
        hosts::connect(options).await
    }

    /// Authenticates over a socket that has just been opened.
    pub(crate) async fn start(
        socket: Socket,
        route: Route,
        options: &ConnectOptions,
        with_settings: bool,
    ) -> Result<Self, Error> {
        let mut connection = Connection::new(socket);
        let mut notices = Notices::default();
        let parameters = startup::start(&mut connection, options, with_settings, &mut notices).await?;
        if options.target == Target::ReadWrite {
            writable(&parameters).map_err(|why| Error::ReadOnly { server: route.host.to_string(), why })?;
        }
        let (pooled, answer_limit, round_trip) = (false, options.connect_timeout, Duration::MAX);
        let session = Session { route, parameters, pooled, answer_limit, round_trip };
        let mut client = Client::resume(connection, notices, session);
        for statement in settings::statements(client.parameters.version) {
            client.simple_query(&statement).await?;
        }
        let process = command::process_id(client.simple_query(command::PROCESS_ID).await?);
        client.pooled = process != Some(client.parameters.process_id);
        client.parameters.process_id = process.unwrap_or_default();
        Ok(client)
    }

    pub(crate) fn resume(connection: Connection, notices: Notices, session: Session) -> Self {
        let Session { route, parameters, pooled, answer_limit, round_trip } = session;
        Client { connection, route, parameters, pooled, notices, answer_limit, round_trip, busy: false }
    }

    /// Which of the hosts this is a connection to.
    pub fn host(&self) -> &Host {
        &self.route.host
    }

    /// Which address of that host: another connection to it reaches the same server.
    pub fn address(&self) -> &Host {
        &self.route.address
    }

    /// Whether a connection pooler or proxy answers instead of the server: it announced a process ID that is not that
    /// of the server process behind this connection.
    pub fn is_pooled(&self) -> bool {
        self.pooled
    }

    /// The server's major version, such as 18.
    pub fn server_version(&self) -> u32 {
        self.parameters.version
    }

    /// The server process behind this connection, as in `pg_stat_replication.pid`.
    pub fn process_id(&self) -> u32 {
        self.parameters.process_id
    }

    /// The notices received since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// Queries which server this is. Compare it with the stored identity before streaming.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `connect_timeout`.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self.query_with_timeout("IDENTIFY_SYSTEM", "identify itself").await?;
        command::identity(rows)
            .ok_or_else(|| Error::protocol("a result of IDENTIFY_SYSTEM without its columns"))
    }

    /// Queries the history of `timeline`: the timelines before it, and where each ended. Needed to decide whether an
    /// LSN from before a promotion lies on the server's present history.
    ///
    /// # Errors
    /// [`Error::Server`] `58P01` when the server does not have the file (any more), [`Error::Protocol`] when its
    /// content is not a history, and [`Error::Timeout`] after `connect_timeout`.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory, Error> {
        if timeline <= FIRST_TIMELINE {
            // The first timeline has no ancestors, and therefore no file.
            return Ok(TimelineHistory::first(timeline));
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.query_with_timeout(&command, "tell the history of its timeline").await?;
        let content = command::history(rows)
            .ok_or_else(|| Error::protocol("a result of TIMELINE_HISTORY without its columns"))?;
        TimelineHistory::parse(timeline, &content)
    }

    /// Runs one or more SQL statements and returns all their rows. There is no timeout: wrap it in
    /// [`tokio::time::timeout`] where that matters.
    ///
    /// # Errors
    /// [`Error::Server`]; the connection can be used again after it, unless the severity is FATAL.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        let sent = Instant::now();
        self.send_query(sql)?;
        loop {
            let frame = self.connection.receive().await?;
            match frame.tag {
                b'D' => rows.push(row(&frame.body)?),
                b'T' | b'C' | b'I' => {}
                b'Z' => break,
                tag => self.handle_async(tag, &frame.body).await?,
            }
        }
        self.busy = false;
        self.round_trip = self.round_trip.min(sent.elapsed());
        Ok(rows)
    }

    /// Creates a logical slot with the plugin pgoutput.
    ///
    /// The server first waits for every running transaction, idle and prepared ones included, which may take as long as
    /// they do.
    ///
    /// # Errors
    /// [`SqlState::DUPLICATE_OBJECT`](crate::SqlState::DUPLICATE_OBJECT) when it exists, `53400` when
    /// `max_replication_slots` are in use, and [`Error::Unsupported`] for a failover slot before PostgreSQL 17.
    pub async fn create_slot(&mut self, name: &str, options: &SlotOptions) -> Result<CreatedSlot, Error> {
        let command = command::create_slot(name, options, self.parameters.version)?;
        let rows = self.simple_query(&command).await?;
        command::created_slot(rows)
            .ok_or_else(|| Error::protocol("a result of CREATE_REPLICATION_SLOT without its columns"))
    }

    /// Starts streaming from a slot, from `start` or from where the slot stands, whichever is later;
    /// [`EndLsn::ZERO`] means the latter.
    ///
    /// The server skips ahead to `start` without an error. Never pass a position beyond what is known to be delivered.
    ///
    /// # Errors
    /// [`SqlState::OBJECT_IN_USE`](crate::SqlState::OBJECT_IN_USE): another client streams from it; wait.
    /// [`SqlState::UNDEFINED_OBJECT`](crate::SqlState::UNDEFINED_OBJECT): there is no such slot.
    /// [`SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE`](crate::SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE): the
    /// slot was invalidated. That a publication is missing shows only in the stream: as the error
    /// [`SqlState::UNDEFINED_OBJECT`](crate::SqlState::UNDEFINED_OBJECT) before PostgreSQL 18, as a
    /// [notice](Notice::skipped_publication) since.
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: EndLsn,
        output: &PgOutput,
    ) -> Result<Stream, Error> {
        let wal_sender_timeout = self.settle_timeout().await?;
        let limit = self.answer_limit;
        let late = |_| Error::Timeout { what: "start to stream", limit };
        timeout(limit, self.start_copy(&command::start_replication(slot, start, output)))
            .await
            .map_err(late)??;
        let Client { route, parameters, pooled, answer_limit, round_trip, .. } = self;
        let session = Session { route, parameters, pooled, answer_limit, round_trip };
        Ok(Stream::new(self.connection, self.notices, session, wal_sender_timeout, start))
    }

    /// The server's `wal_sender_timeout`, if both sides notice a dead peer with it in reasonable time. Otherwise sets
    /// the default for this connection: at 0 the server would keep the slot of a vanished client in use.
    async fn settle_timeout(&mut self) -> Result<Duration, Error> {
        let what = "tell its wal_sender_timeout";
        let rows = self.query_with_timeout(command::WAL_SENDER_TIMEOUT, what).await?;
        let configured = command::milliseconds(&rows)
            .ok_or_else(|| Error::protocol("a result without wal_sender_timeout"))?;
        let settled = command::useful_timeout(configured);
        if settled != configured {
            let set = format!("SET wal_sender_timeout = {}", settled.as_millis());
            self.query_with_timeout(&set, "set wal_sender_timeout").await?;
        }
        Ok(settled)
    }

    async fn start_copy(&mut self, command: &str) -> Result<(), Error> {
        self.send_query(command)?;
        loop {
            let frame = self.connection.receive().await?;
            match frame.tag {
                b'W' => return Ok(()),
                tag => self.handle_async(tag, &frame.body).await?,
            }
        }
    }

    /// Sends Terminate, so that the server log shows no broken connection.
    ///
    /// # Errors
    /// [`Error::Io`] when the connection is already gone.
    pub async fn close(mut self) -> Result<(), Error> {
        frontend::terminate(self.connection.output());
        self.connection.flush().await
    }

    /// Runs a command that a healthy server answers immediately.
    async fn query_with_timeout(&mut self, sql: &str, what: &'static str) -> Result<Vec<Row>, Error> {
        let limit = self.answer_limit;
        timeout(limit, self.simple_query(sql)).await.map_err(|_| Error::Timeout { what, limit })?
    }

    fn send_query(&mut self, sql: &str) -> Result<(), Error> {
        if self.busy {
            return Err(Error::Interrupted);
        }
        frontend::query(sql, self.connection.output())?;
        self.busy = true;
        Ok(())
    }

    /// Handles a message that may arrive during any result.
    async fn handle_async(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
        match tag {
            b'N' => Ok(self.notices.receive(body)?),
            b'S' => Ok(()),
            b'E' => {
                let error = server_error(body)?;
                if error.severity == "ERROR" {
                    self.wait_until_ready().await?;
                }
                Err(error.into())
            }
            tag => Err(Error::protocol(format!("message {tag:#04x} in an answer"))),
        }
    }

    /// After an error, waits until the server accepts commands again.
    async fn wait_until_ready(&mut self) -> Result<(), Error> {
        while self.connection.receive().await?.tag != b'Z' {}
        self.busy = false;
        Ok(())
    }
}

/// What a stream keeps of its client, to become a client again.
pub(crate) struct Session {
    route: Route,
    parameters: ServerParameters,
    pooled: bool,
    answer_limit: Duration,
    pub(crate) round_trip: Duration,
}

/// Whether the server accepts writes; if not, why not.
fn writable(parameters: &ServerParameters) -> Result<(), &'static str> {
    match parameters {
        ServerParameters { standby: true, .. } => Err("is a standby"),
        ServerParameters { read_only: true, .. } => Err("is read-only (default_transaction_read_only)"),
        _ => Ok(()),
    }
}

fn row(body: &[u8]) -> Result<Row, WireError> {
    let mut reader = Reader::new(body);
    let count = reader.u16()?;
    let mut row = Row::with_capacity(usize::from(count));
    for _ in 0..count {
        row.push(match reader.i32()? {
            ..0 => None,
            length => {
                let bytes = reader.bytes(usize::try_from(length).unwrap_or(usize::MAX))?;
                Some(String::from_utf8(bytes.to_vec()).map_err(|_| WireError("has text that is not UTF-8"))?)
            }
        });
    }
    reader.finish()?;
    Ok(row)
}
