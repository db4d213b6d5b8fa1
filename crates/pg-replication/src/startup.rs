//! From an open socket to a connection that accepts commands: startup message, authentication, parameters.

use postgres_protocol::message::frontend;

use crate::authentication::authenticate;
use crate::connection::Connection;
use crate::report::{Notices, server_error};
use crate::wire::Reader;
use crate::{ConnectOptions, Error, settings};

/// What the server reports about itself before it is ready.
#[derive(Debug, Default)]
pub(crate) struct ServerParameters {
    /// The major version, such as 18.
    pub(crate) version: u32,
    /// The process that serves this connection.
    pub(crate) process_id: u32,
    /// It is in recovery: a standby.
    pub(crate) standby: bool,
    /// Transactions of this connection are read-only by default.
    pub(crate) read_only: bool,
}

pub(crate) async fn start(
    connection: &mut Connection,
    options: &ConnectOptions,
    with_settings: bool,
    notices: &mut Notices,
) -> Result<ServerParameters, Error> {
    frontend::startup_message(parameters(options, with_settings), connection.output())?;
    authenticate(connection, options, notices).await?;
    greet(connection, notices).await
}

fn parameters(options: &ConnectOptions, with_settings: bool) -> Vec<(&str, &str)> {
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("database", &options.database),
        ("replication", "database"),
        ("application_name", &options.application_name),
    ];
    let settings = settings::at_startup().map(|setting| (setting.name, setting.value));
    parameters.extend(settings.filter(|_| with_settings));
    parameters
}

/// Reads the server's parameters until it is ready.
async fn greet(connection: &mut Connection, notices: &mut Notices) -> Result<ServerParameters, Error> {
    let mut parameters = ServerParameters::default();
    loop {
        let frame = connection.receive().await?;
        let mut reader = Reader::new(&frame.body);
        match frame.tag {
            b'S' => match (reader.text()?, reader.text()?) {
                ("server_version", version) => parameters.version = major(version)?,
                ("in_hot_standby", value) => parameters.standby = value == "on",
                ("default_transaction_read_only", value) => parameters.read_only = value == "on",
                _ => {}
            },
            b'K' => parameters.process_id = reader.u32()?,
            b'N' => notices.receive(&frame.body)?,
            b'E' => return Err(server_error(&frame.body)?.into()),
            b'Z' => return Ok(parameters),
            tag => return Err(Error::protocol(format!("message {tag:#04x} while starting"))),
        }
    }
}

/// The major version in `18.4`, `17beta1` or `15.20 (Debian 15.20-0+deb12u1)`.
fn major(version: &str) -> Result<u32, Error> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().map_err(|_| Error::protocol(format!("server version `{version}`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Socket;
    use crate::{ChannelBinding, Host, Password};
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[test]
    fn versions_are_read_in_all_their_forms() {
        for (text, expected) in [("18.4", 18), ("17beta1", 17), ("15.20 (Debian 15.20-0+deb12u1)", 15)] {
            assert_eq!(major(text).unwrap(), expected);
        }
        assert!(major("").is_err() && major("devel").is_err());
    }

    /// Lets the client connect to a server that sends `bytes`, whatever it receives, and then closes the connection.
    fn connect_to(bytes: &[u8]) -> Result<ServerParameters, Error> {
        connect_demanding(ChannelBinding::Prefer, bytes)
    }

    fn connect_demanding(demand: ChannelBinding, bytes: &[u8]) -> Result<ServerParameters, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let host = Host::Unix { directory: "/nowhere".into(), port: 5432 };
            let mut options = ConnectOptions::new(host, "relay", "shop");
            options.tls.channel_binding = demand;
            options.password = Some(Password::new("sesame"));
            let mut connection = Connection::new(Socket::Unix(ours));
            start(&mut connection, &options, true, &mut Notices::default()).await
        })
    }

    fn request(kind: u32, rest: &[u8]) -> Vec<u8> {
        [b"R", &(rest.len() as u32 + 8).to_be_bytes()[..], &kind.to_be_bytes(), rest].concat()
    }

    const VERSION: &[u8] = b"S\0\0\0\x18server_version\x0018.4\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn trust_authentication_needs_no_exchange() {
        let parameters = connect_to(&[&request(0, b"")[..], VERSION, READY].concat()).unwrap();
        assert_eq!(parameters.version, 18);
    }

    #[test]
    fn a_read_only_server_is_recognised_by_its_parameters() {
        let says = |name: &str, value: &str| {
            let body = format!("{name}\0{value}\0");
            [b"S", &(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes()].concat()
        };
        let greeted = |settings: &[Vec<u8>]| {
            connect_to(&[&request(0, b"")[..], VERSION, &settings.concat(), READY].concat()).unwrap()
        };
        let primary = greeted(&[says("in_hot_standby", "off"), says("default_transaction_read_only", "off")]);
        assert!(!primary.standby && !primary.read_only);
        assert!(greeted(&[says("in_hot_standby", "on")]).standby);
        assert!(greeted(&[says("default_transaction_read_only", "on")]).read_only);
    }

    #[test]
    fn required_channel_binding_is_used_or_authentication_fails() {
        let welcome = [&request(0, b"")[..], VERSION, READY].concat();
        let md5 = request(5, b"salt");
        let scram = request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        for login in [welcome, md5, scram] {
            let refused = connect_demanding(ChannelBinding::Require, &login);
            assert!(matches!(refused, Err(Error::Auth { .. })), "{refused:?}");
        }
    }

    #[test]
    fn authentication_ok_without_the_servers_proof_is_rejected() {
        let offer = request(10, b"SCRAM-SHA-256\0\0");
        let refused = connect_to(&[&offer[..], &request(0, b""), VERSION, READY].concat());
        assert!(matches!(refused, Err(Error::Auth { .. })));
    }

    #[test]
    fn unsupported_authentication_requests_are_rejected() {
        for kind in [2, 3, 6, 7, 9, 99] {
            assert!(matches!(connect_to(&request(kind, b"")), Err(Error::Auth { .. })), "{kind}");
        }
        let unknown = request(10, b"SCRAM-SHA-512\0\0");
        assert!(matches!(connect_to(&unknown), Err(Error::Auth { .. })));
    }

    #[test]
    fn a_server_that_closes_is_reported_as_closed() {
        assert!(matches!(connect_to(b""), Err(Error::Closed)));
        assert!(matches!(connect_to(&request(0, b"")), Err(Error::Closed)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_server_makes_it_panic(messages in prop::collection::vec(
            (prop::sample::select(b"RSKNEZdX".to_vec()), 0..14_u32, prop::collection::vec(any::<u8>(), 0..40)),
            0..8,
        )) {
            let bytes: Vec<u8> = messages
                .iter()
                .flat_map(|(tag, kind, rest)| {
                    let mut message = request(*kind, rest);
                    message[0] = *tag;
                    message
                })
                .collect();
            let _ = connect_to(&bytes);
        }
    }
}
