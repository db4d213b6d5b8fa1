//! From an open socket to a connection that takes commands: startup message and authentication.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;

use crate::connection::Connection;
use crate::report::{Notices, server_error};
use crate::wire::Reader;
use crate::{ConnectOptions, Error};

/// What the server tells about itself before it is ready.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    /// The major version, such as 18.
    pub(crate) version: u32,
    /// The process that serves this connection.
    pub(crate) process_id: u32,
}

pub(crate) async fn start(
    connection: &mut Connection,
    options: &ConnectOptions,
    notices: &mut Notices,
) -> Result<Greeting, Error> {
    frontend::startup_message(parameters(options), connection.output())?;
    authenticate(connection, options, notices).await?;
    greet(connection, notices).await
}

/// Values in text form must not depend on how the server or the role is configured.
fn parameters(options: &ConnectOptions) -> [(&str, &str); 10] {
    [
        ("user", &options.user),
        ("database", &options.database),
        ("replication", "database"),
        ("application_name", &options.application_name),
        ("client_encoding", "UTF8"),
        ("datestyle", "ISO"),
        ("intervalstyle", "postgres"),
        ("timezone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
    ]
}

/// How far SCRAM has come. The server must prove at the end that it knows the password too, so "welcome" in
/// between is refused.
enum Exchange {
    None,
    Scram(Box<ScramSha256>),
    Proven,
}

async fn authenticate(
    connection: &mut Connection,
    options: &ConnectOptions,
    notices: &mut Notices,
) -> Result<(), Error> {
    let mut exchange = Exchange::None;
    loop {
        let request = next_request(connection, notices).await?;
        let mut reader = Reader::new(&request);
        let kind = reader.u32()?;
        match (kind, &mut exchange) {
            (0, Exchange::None | Exchange::Proven) => return Ok(()),
            (5, Exchange::None) => {
                let salt = <[u8; 4]>::try_from(reader.rest())
                    .map_err(|_| Error::protocol("an md5 request without its salt"))?;
                let hash = md5_hash(options.user.as_bytes(), password(options)?, salt);
                frontend::password_message(hash.as_bytes(), connection.output())?;
            }
            (10, Exchange::None) => {
                let scram = choose_scram(reader, password(options)?)?;
                frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), connection.output())?;
                exchange = Exchange::Scram(Box::new(scram));
            }
            (11, Exchange::Scram(scram)) => {
                scram.update(reader.rest()).map_err(scram_failed)?;
                frontend::sasl_response(scram.message(), connection.output())?;
            }
            (12, Exchange::Scram(scram)) => {
                scram.finish(reader.rest()).map_err(scram_failed)?;
                exchange = Exchange::Proven;
            }
            (kind, _) => return Err(unacceptable(kind)),
        }
    }
}

/// The body of the next authentication request.
async fn next_request(connection: &mut Connection, notices: &mut Notices) -> Result<Bytes, Error> {
    loop {
        let frame = connection.receive().await?;
        match frame.tag {
            b'R' => return Ok(frame.body),
            b'E' => return Err(server_error(&frame.body)?.into()),
            b'N' => notices.receive(&frame.body)?,
            tag => return Err(Error::protocol(format!("message {tag:#04x} while authenticating"))),
        }
    }
}

fn password(options: &ConnectOptions) -> Result<&[u8], Error> {
    let missing = || Error::auth(format!("the server asks for the password of `{}`; give one", options.user));
    options.password.as_ref().map(|password| password.reveal()).ok_or_else(missing)
}

fn choose_scram(mut mechanisms: Reader<'_>, password: &[u8]) -> Result<ScramSha256, Error> {
    loop {
        match mechanisms.text()? {
            SCRAM_SHA_256 => return Ok(ScramSha256::new(password, ChannelBinding::unsupported())),
            "" => {
                return Err(Error::auth(
                    "the server offers no SASL mechanism but unknown ones; use scram-sha-256",
                ));
            }
            _ => {}
        }
    }
}

fn scram_failed(error: std::io::Error) -> Error {
    Error::auth(format!("the SCRAM exchange failed ({error}); is this the right server?"))
}

fn unacceptable(kind: u32) -> Error {
    Error::auth(match kind {
        3 => "the server asks for the password in clear text, which is refused; \
              use scram-sha-256 in pg_hba.conf"
            .to_owned(),
        2 | 6 | 7 | 8 | 9 => "the server asks for Kerberos, GSSAPI or SSPI, which are not supported; \
              use scram-sha-256 in pg_hba.conf"
            .to_owned(),
        0 => "the server ended the SCRAM exchange without proving that it knows the password".to_owned(),
        kind => format!("the server sent authentication request {kind} out of turn"),
    })
}

/// Reads what the server tells about itself until it is ready.
async fn greet(connection: &mut Connection, notices: &mut Notices) -> Result<Greeting, Error> {
    let mut greeting = Greeting::default();
    loop {
        let frame = connection.receive().await?;
        let mut reader = Reader::new(&frame.body);
        match frame.tag {
            b'S' => {
                if reader.text()? == "server_version" {
                    greeting.version = major(reader.text()?)?;
                }
            }
            b'K' => greeting.process_id = reader.u32()?,
            b'N' => notices.receive(&frame.body)?,
            b'E' => return Err(server_error(&frame.body)?.into()),
            b'Z' => return Ok(greeting),
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
    use crate::{Host, Password};
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

    /// Lets the client meet a server that says `bytes`, whatever it is told, and then hangs up.
    fn meet(bytes: &[u8]) -> Result<Greeting, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let host = Host::Unix { directory: "/nowhere".into(), port: 5432 };
            let mut options = ConnectOptions::new(host, "relay", "shop");
            options.password = Some(Password::new("sesame"));
            let mut connection = Connection::new(Socket::Unix(ours));
            start(&mut connection, &options, &mut Notices::default()).await
        })
    }

    fn request(kind: u32, rest: &[u8]) -> Vec<u8> {
        [b"R", &(rest.len() as u32 + 8).to_be_bytes()[..], &kind.to_be_bytes(), rest].concat()
    }

    const VERSION: &[u8] = b"S\0\0\0\x18server_version\x0018.4\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn a_server_that_trusts_is_taken_at_its_word() {
        let greeting = meet(&[&request(0, b"")[..], VERSION, READY].concat()).unwrap();
        assert_eq!(greeting.version, 18);
    }

    #[test]
    fn a_welcome_without_proof_is_refused() {
        let offer = request(10, b"SCRAM-SHA-256\0\0");
        let refused = meet(&[&offer[..], &request(0, b""), VERSION, READY].concat());
        assert!(matches!(refused, Err(Error::Auth { .. })));
    }

    #[test]
    fn requests_that_are_not_supported_are_refused() {
        for kind in [2, 3, 6, 7, 9, 99] {
            assert!(matches!(meet(&request(kind, b"")), Err(Error::Auth { .. })), "{kind}");
        }
        let unknown = request(10, b"SCRAM-SHA-512\0\0");
        assert!(matches!(meet(&unknown), Err(Error::Auth { .. })));
    }

    #[test]
    fn a_server_that_hangs_up_is_closed() {
        assert!(matches!(meet(b""), Err(Error::Closed)));
        assert!(matches!(meet(&request(0, b"")), Err(Error::Closed)));
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
            let _ = meet(&bytes);
        }
    }
}
