//! The parts of a server's certificate that webpki does not read: certificates of X.509 version 1, which `openssl x509
//! -req` creates, and the common name, which replaces a missing subjectAltName (RFC 5280, RFC 2818).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{ServerName, SignatureVerificationAlgorithm, UnixTime};

use super::TlsError;
use super::der::{
    BIT_STRING, BOOLEAN, CONTEXT_0, CONTEXT_3, Der, GENERALIZED_TIME, INTEGER, OBJECT_IDENTIFIER,
    OCTET_STRING, SEQUENCE, SET, UTC_TIME,
};
use crate::time::{civil_date, days_of};

/// 2.5.4.3
const COMMON_NAME: &[u8] = b"\x55\x04\x03";
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1D\x11";
/// GeneralName: dNSName and iPAddress.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// The fields needed here.
pub(super) struct Certificate<'a> {
    /// The signed part, the algorithm, and the signature.
    signed: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
    pub(super) is_version_1: bool,
    issuer: &'a [u8],
    subject: &'a [u8],
    /// In seconds since 1970, both inclusive.
    valid: std::ops::RangeInclusive<i64>,
    /// SubjectPublicKeyInfo.
    pub(super) key: &'a [u8],
    common_name: Option<&'a str>,
    dns_names: Vec<&'a str>,
    addresses: Vec<IpAddr>,
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut whole = Der(Der(der).take(SEQUENCE)?);
        let signed = whole.whole(SEQUENCE)?;
        let signature_algorithm = whole.take(SEQUENCE)?;
        let signature = bits(whole.take(BIT_STRING)?)?;
        let mut body = Der(Der(signed).take(SEQUENCE)?);
        let is_version_1 = body.take(CONTEXT_0).is_none();
        body.take(INTEGER)?;
        body.take(SEQUENCE)?;
        let issuer = body.take(SEQUENCE)?;
        let mut valid = Der(body.take(SEQUENCE)?);
        let valid = seconds(&mut valid)?..=seconds(&mut valid)?;
        let subject = body.take(SEQUENCE)?;
        let key = body.whole(SEQUENCE)?;
        let (dns_names, addresses) = alternative_names(body);
        let common_name = common_name(subject);
        Some(Certificate {
            signed,
            signature_algorithm,
            signature,
            is_version_1,
            issuer,
            subject,
            valid,
            key,
            common_name,
            dns_names,
            addresses,
        })
    }

    /// Whether it is valid at this time.
    pub(super) fn check_dates(&self, now: UnixTime) -> Result<(), TlsError> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < *self.valid.start() {
            return Err(TlsError::not_valid_yet(*self.valid.start()));
        }
        if now > *self.valid.end() {
            return Err(TlsError::expired(*self.valid.end()));
        }
        Ok(())
    }

    /// Whether it was issued directly by one of the `authorities`, without an intermediate.
    pub(super) fn check_issuer(
        &self,
        authorities: &[impl AsRef<[u8]>],
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), TlsError> {
        let mut issuers = authorities.iter().filter_map(|authority| Certificate::parse(authority.as_ref()));
        let issued = |issuer: Certificate<'_>| {
            issuer.subject == self.issuer
                && algorithms.all.iter().any(|algorithm| {
                    algorithm.signature_alg_id().as_ref() == self.signature_algorithm
                        && issuer.has_signed(*algorithm, self.signed, self.signature)
                })
        };
        if issuers.any(issued) {
            return Ok(());
        }
        Err(TlsError::unknown_issuer(self))
    }

    /// Whether `signature` was created with its key.
    pub(super) fn has_signed(
        &self,
        algorithm: &dyn SignatureVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let key = || {
            let mut key = Der(Der(self.key).take(SEQUENCE)?);
            let kind = key.take(SEQUENCE)?;
            (kind == algorithm.public_key_alg_id().as_ref()).then_some(bits(key.take(BIT_STRING)?)?)
        };
        key().is_some_and(|key| algorithm.verify_signature(key, message, signature).is_ok())
    }

    /// Whether its common name matches `host`, and counts: it does not beside a subjectAltName of the same kind.
    pub(super) fn is_for_by_common_name(&self, host: &ServerName<'_>) -> bool {
        let counts = match host {
            ServerName::IpAddress(_) => self.addresses.is_empty(),
            _ => self.dns_names.is_empty(),
        };
        counts && self.common_name.is_some_and(|name| matches(name, host))
    }

    /// The issuer's name, for messages.
    pub(super) fn issuer_name(&self) -> &str {
        common_name(self.issuer).unwrap_or("without a name")
    }

    /// The names it was issued for, for messages.
    pub(super) fn names(&self) -> String {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        let mut names: Vec<String> =
            self.dns_names.iter().map(|name| (*name).to_owned()).chain(addresses).collect();
        if names.is_empty() {
            names.extend(self.common_name.map(|name| format!("{name} (its common name)")));
        }
        if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") }
    }
}

/// As in libpq: a wildcard stands for one label, and only at the beginning.
fn matches(pattern: &str, host: &ServerName<'_>) -> bool {
    let text = host.to_str();
    if pattern.eq_ignore_ascii_case(&text) {
        return true;
    }
    let (ServerName::DnsName(_), Some(domain)) = (host, pattern.strip_prefix("*.")) else { return false };
    text.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
}

/// The bytes of a bit string that has whole bytes.
fn bits(content: &[u8]) -> Option<&[u8]> {
    content.strip_prefix(&[0])
}

fn common_name(name: &[u8]) -> Option<&str> {
    let mut parts = Der(name);
    while let Some(part) = parts.take(SET) {
        let mut pair = Der(Der(part).take(SEQUENCE)?);
        if pair.take(OBJECT_IDENTIFIER)? == COMMON_NAME {
            return std::str::from_utf8(pair.any()?.1).ok();
        }
    }
    None
}

/// DNS names and addresses of the extension, if there is one; `body` begins after the key.
fn alternative_names(mut body: Der<'_>) -> (Vec<&str>, Vec<IpAddr>) {
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
    let mut names = Der(subject_alt_name(&mut body).unwrap_or_default());
    while let Some((tag, content)) = names.any() {
        match tag {
            DNS_NAME => dns_names.extend(std::str::from_utf8(content)),
            IP_ADDRESS => addresses.extend(address(content)),
            _ => {}
        }
    }
    (dns_names, addresses)
}

fn subject_alt_name<'a>(body: &mut Der<'a>) -> Option<&'a [u8]> {
    let mut extensions = loop {
        match body.any()? {
            (CONTEXT_3, content) => break Der(Der(content).take(SEQUENCE)?),
            _ => continue,
        }
    };
    while let Some(extension) = extensions.take(SEQUENCE) {
        let mut extension = Der(extension);
        let kind = extension.take(OBJECT_IDENTIFIER)?;
        extension.take(BOOLEAN);
        let value = extension.take(OCTET_STRING)?;
        if kind == SUBJECT_ALT_NAME {
            return Der(value).take(SEQUENCE);
        }
    }
    None
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}

/// A time as certificates have it: `YYMMDDHHMMSSZ` of the years 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn seconds(times: &mut Der<'_>) -> Option<i64> {
    let (tag, text) = times.any()?;
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, rest) = match tag {
        UTC_TIME => (number(0, 2).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let part = |index: usize| number(rest + 2 * index, rest + 2 * index + 2);
    let days = days_of(year, part(0)?, part(1)?);
    Some(((days * 24 + part(2)?) * 60 + part(3)?) * 60 + part(4)?)
}

/// A date, for messages.
pub(super) fn date(seconds: i64) -> String {
    let (year, month, day) = civil_date(seconds.div_euclid(24 * 60 * 60));
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use testbed::certificates::Authority;

    use super::*;

    fn name(host: &str) -> ServerName<'static> {
        ServerName::try_from(host.to_owned()).unwrap()
    }

    #[test]
    fn names_dates_and_issuer_are_read() {
        let authority = Authority::new("ours").unwrap();
        let pem = authority.expired_server(&["db.test", "10.0.0.1", "::1"]).unwrap().pem;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.names(), "db.test, 10.0.0.1, ::1");
        assert_eq!(certificate.issuer_name(), "ours");
        let (start, end) = (*certificate.valid.start(), *certificate.valid.end());
        assert_eq!((date(start), date(end)), ("2020-01-01".into(), "2020-02-01".into()));
        let at = |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds as u64));
        assert!(certificate.check_dates(at(start)).is_ok() && certificate.check_dates(at(end)).is_ok());
        assert!(
            certificate.check_dates(at(start - 1)).is_err() && certificate.check_dates(at(end + 1)).is_err()
        );
    }

    #[test]
    fn a_common_name_counts_as_in_libpq() {
        let known = |common_name, dns_names: &[&'static str], addresses: &[IpAddr]| Certificate {
            signed: &[],
            signature_algorithm: &[],
            signature: &[],
            is_version_1: false,
            issuer: &[],
            subject: &[],
            valid: 0..=0,
            key: &[],
            common_name: Some(common_name),
            dns_names: dns_names.to_vec(),
            addresses: addresses.to_vec(),
        };
        let (local, none): (IpAddr, &[IpAddr]) = ([127, 0, 0, 1].into(), &[]);
        for (common_name, dns_names, addresses, host, expected) in [
            ("db.test", &[][..], none, "db.test", true),
            ("DB.Test", &[], none, "db.test", true),
            ("*.test", &[], none, "db.test", true),
            ("*.test", &[], none, "a.db.test", false),
            ("*", &[], none, "db", false),
            ("other", &[], none, "db.test", false),
            ("127.0.0.1", &[], none, "127.0.0.1", true),
            ("*.0.0.1", &[], none, "127.0.0.1", false),
            ("db.test", &["other"], none, "db.test", false),
            ("db.test", &[], &[local], "db.test", true),
            ("10.0.0.1", &[], &[local], "10.0.0.1", false),
            ("10.0.0.1", &["db.test"], none, "10.0.0.1", true),
        ] {
            let found = known(common_name, dns_names, addresses).is_for_by_common_name(&name(host));
            assert_eq!(found, expected, "{common_name} {dns_names:?} {addresses:?} {host}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (text, tag, expected) in [
            ("19700101000000Z", GENERALIZED_TIME, Some(0)),
            ("20000229235959Z", GENERALIZED_TIME, Some(951_868_799)),
            ("491231235959Z", UTC_TIME, Some(2_524_607_999)),
            ("500101000000Z", UTC_TIME, Some(-631_152_000)),
            ("20000229235959", GENERALIZED_TIME, None),
            ("Z", UTC_TIME, None),
        ] {
            let element = [&[tag, text.len() as u8], text.as_bytes()].concat();
            assert_eq!(seconds(&mut Der(&element)), expected, "{text}");
        }
        assert_eq!(date(951_868_799), "2000-02-29");
        assert_eq!(date(-1), "1969-12-31");
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, at in 0..400_usize, to: u8) {
            let _ = Certificate::parse(&bytes);
            let pem = Authority::new("a").unwrap().server(&["db.test"]).unwrap().pem;
            let mut der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
            if let Some(byte) = der.get_mut(at) {
                *byte = to;
            }
            if let Some(certificate) = Certificate::parse(&der) {
                let _ = (certificate.names(), certificate.check_dates(UnixTime::now()));
            }
        }
    }
}
