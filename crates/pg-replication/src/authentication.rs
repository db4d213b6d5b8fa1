//! Authentication of the client, and, with SCRAM, of the server.

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use crate::connection::Connection;
use crate::report::{Notices, server_error};
use crate::wire::Reader;
use crate::{ChannelBinding, ConnectOptions, Error, TlsMode};

/// Progress of SCRAM. The server must prove at the end that it knows the password, too, so AuthenticationOk before that
/// is rejected.
enum Exchange {
    None,
    Scram(Box<ScramSha256>),
    Proven,
}

pub(crate) async fn authenticate(
    connection: &mut Connection,
    options: &ConnectOptions,
    notices: &mut Notices,
) -> Result<(), Error> {
    let demand = options.tls.channel_binding;
    let mut exchange = Exchange::None;
    loop {
        let request = next_request(connection, notices).await?;
        let mut reader = Reader::new(&request);
        let kind = reader.u32()?;
        match (kind, &mut exchange) {
            // The exchange satisfied the required channel binding, or no SASL exchange took place.
            (0, Exchange::Proven) => return Ok(()),
            (0 | 3 | 5, Exchange::None) if demand == ChannelBinding::Require => return Err(unbound()),
            (0, Exchange::None) => return Ok(()),
            // As managed servers ask for the tokens of IAM. Nothing but the name that was verified keeps it from others.
            (3, Exchange::None) if is_verified(connection, options) => {
                frontend::password_message(password(options)?, connection.output())?;
            }
            (5, Exchange::None) => {
                let salt = <[u8; 4]>::try_from(reader.rest())
                    .map_err(|_| Error::protocol("an md5 request without its salt"))?;
                let hash = md5_hash(options.user.as_bytes(), password(options)?, salt);
                frontend::password_message(hash.as_bytes(), connection.output())?;
            }
            (10, Exchange::None) => {
                let (mechanism, binding) = choose(reader, connection.end_point(), demand)?;
                let scram = ScramSha256::new(password(options)?, binding);
                frontend::sasl_initial_response(mechanism, scram.message(), connection.output())?;
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

/// Whether the connection is encrypted, and the server's certificate was verified.
fn is_verified(connection: &Connection, options: &ConnectOptions) -> bool {
    connection.is_encrypted() && matches!(options.tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull)
}

fn password(options: &ConnectOptions) -> Result<&[u8], Error> {
    let missing = || Error::auth(format!("the server asks for the password of `{}`; give one", options.user));
    options.password.as_ref().map(|password| password.reveal()).ok_or_else(missing)
}

/// The strongest mechanism that both sides support.
fn choose(
    mut offered: Reader<'_>,
    end_point: Option<Vec<u8>>,
    demand: ChannelBinding,
) -> Result<(&'static str, Binding), Error> {
    let (mut plain, mut plus) = (false, false);
    loop {
        match offered.text()? {
            SCRAM_SHA_256 => plain = true,
            SCRAM_SHA_256_PLUS => plus = true,
            "" => break,
            _ => {}
        }
    }
    match end_point {
        Some(end_point) if plus => Ok((SCRAM_SHA_256_PLUS, Binding::tls_server_end_point(end_point))),
        _ if demand == ChannelBinding::Require => Err(unbound()),
        // "y": the client supports channel binding and the server did not offer it. If its offer was tampered with, the
        // exchange fails.
        Some(_) if plain => Ok((SCRAM_SHA_256, Binding::unrequested())),
        None if plain => Ok((SCRAM_SHA_256, Binding::unsupported())),
        _ => Err(Error::auth("the server offers only unknown SASL mechanisms; use scram-sha-256")),
    }
}

fn unbound() -> Error {
    Error::auth(
        "channel binding is required, but not possible on this connection; it requires TLS, scram-sha-256 in pg_hba.conf, \
         and a server certificate that is not signed with Ed25519",
    )
}

fn scram_failed(error: std::io::Error) -> Error {
    Error::auth(format!("the SCRAM exchange failed ({error}); is this the right server?"))
}

fn unacceptable(kind: u32) -> Error {
    Error::auth(match kind {
        3 => "the server asks for the password in clear text, which is refused without TLS that verifies the server; \
              use scram-sha-256 in pg_hba.conf, or the TLS mode verify-full"
            .to_owned(),
        2 | 6 | 7 | 8 | 9 => "the server asks for Kerberos, GSSAPI or SSPI, which are not supported; \
              use scram-sha-256 in pg_hba.conf"
            .to_owned(),
        0 => "the server ended the SCRAM exchange without proving that it knows the password".to_owned(),
        kind => format!("the server sent authentication request {kind} out of turn"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(offered: &[u8], end_point: bool, demand: ChannelBinding) -> Option<(&'static str, String)> {
        let (mechanism, binding) = choose(Reader::new(offered), end_point.then(|| vec![7]), demand).ok()?;
        let first = ScramSha256::new(b"sesame", binding);
        let header = String::from_utf8_lossy(first.message()).split(',').next().unwrap().to_owned();
        Some((mechanism, header))
    }

    #[test]
    fn scram_uses_channel_binding_if_offered_and_signals_its_support_otherwise() {
        use ChannelBinding::{Prefer, Require};
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let plain = b"SCRAM-SHA-256\0\0";
        let plus = Some((SCRAM_SHA_256_PLUS, "p=tls-server-end-point".to_owned()));
        assert_eq!(chosen(both, true, Prefer), plus);
        assert_eq!(chosen(both, true, Require), plus);
        assert_eq!(chosen(plain, true, Prefer), Some((SCRAM_SHA_256, "y".to_owned())));
        assert_eq!(chosen(both, false, Prefer), Some((SCRAM_SHA_256, "n".to_owned())));
        assert_eq!(chosen(plain, true, Require), None);
        assert_eq!(chosen(both, false, Require), None);
        assert_eq!(chosen(b"OTHER\0\0", true, Prefer), None);
    }
}
