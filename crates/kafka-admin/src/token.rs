//! Sets the token of a SASL OAUTHBEARER client.
//!
//! The `rdkafka` crate has a callback for them. It is not used, because it does less than librdkafka can: it passes no SASL
//! extensions, it blocks the thread that serves acknowledgements while a token is fetched, and it is only called where events are polled,
//! which an admin client never does and a consumer does only when it reads.

use std::ffi::{CString, c_char};
use std::fmt;
use std::ptr;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};

use crate::Error;
use crate::answer::text;

/// A token, and what librdkafka needs to know about it. `Debug` does not show the token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token as it is sent.
    pub value: String,
    /// When it expires, in milliseconds since 1970.
    pub expires_at: i64,
    /// The name that librdkafka shows. Brokers read it from the token.
    pub principal: String,
    /// SASL extensions (RFC 7628), which some brokers need beside the token.
    pub extensions: Vec<(String, String)>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Token { expires_at, principal, .. } = self;
        f.debug_struct("Token")
            .field("expires_at", expires_at)
            .field("principal", principal)
            .finish_non_exhaustive()
    }
}

/// Sets a client's token. Connections that wait for one are opened now; open ones use it when they authenticate again.
///
/// # Errors
/// The client does not use OAUTHBEARER, the token has expired, or an extension is not valid.
pub fn set_token<C: ClientContext>(client: &Client<C>, token: &Token) -> Result<(), Error> {
    let (value, principal) = (CString::new(&*token.value)?, CString::new(&*token.principal)?);
    let extensions = token.extensions.iter().flat_map(|(key, value)| [key, value]);
    let extensions: Vec<CString> = extensions.map(|text| CString::new(&**text)).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = extensions.iter().map(|text| text.as_ptr()).collect();
    let mut message = [0; 512];
    // SAFETY: the client and all texts live longer than this call, which copies them; the buffer has the given length.
    let code = unsafe {
        ffi::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.expires_at,
            principal.as_ptr(),
            if pointers.is_empty() { ptr::null_mut() } else { pointers.as_mut_ptr() },
            pointers.len(),
            message.as_mut_ptr(),
            message.len(),
        )
    };
    if code == ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    // SAFETY: librdkafka writes a text there that ends with a NUL.
    Err(Error::Refused { code: code.into(), message: unsafe { text(message.as_ptr()) } })
}

/// Reports that there is no new token, and why: the client's context gets an authentication error, once for each reason. The current token
/// stays in use.
///
/// # Errors
/// The reason has a NUL in it.
pub fn report_token_failure<C: ClientContext>(client: &Client<C>, why: &str) -> Result<(), Error> {
    let why = CString::new(why)?;
    // SAFETY: the client and the text live longer than this call, which copies it.
    unsafe { ffi::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), why.as_ptr()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};

    use super::*;

    fn token(extensions: &[(&str, &str)]) -> Token {
        let extensions = extensions.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Token {
            value: "secret-token".to_owned(),
            expires_at: i64::MAX / 2_000,
            principal: "shipper".to_owned(),
            extensions: extensions.collect(),
        }
    }

    fn client(mechanism: &str) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "g").set("log_level", "0");
        config.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", mechanism);
        config.set("sasl.username", "u").set("sasl.password", "p").create().unwrap()
    }

    #[test]
    fn a_token_with_extensions_is_accepted_and_an_invalid_one_is_refused_with_a_reason() {
        let consumer = client("OAUTHBEARER");
        let set = |token: &Token| set_token(consumer.client(), token).map_err(|error| error.to_string());
        assert_eq!(set(&token(&[])), Ok(()));
        assert_eq!(set(&token(&[("logicalCluster", "lkc-1"), ("identityPoolId", "pool")])), Ok(()));
        let reserved = set(&token(&[("auth", "x")])).unwrap_err();
        assert!(reserved.contains("reserved"), "{reserved}");
        let expired = set(&Token { expires_at: 1, ..token(&[]) }).unwrap_err();
        assert!(expired.contains("unexpired") && !expired.contains("secret-token"), "{expired}");
        let plain = set_token(client("PLAIN").client(), &token(&[])).unwrap_err().to_string();
        assert!(plain.contains("not the configured"), "{plain}");
    }

    #[test]
    fn a_token_is_not_printed() {
        let shown = format!("{:?}", token(&[]));
        assert!(shown.contains("shipper") && !shown.contains("secret-token"), "{shown}");
    }
}
