//! Certificates of X.509 version 1, which rcgen does not make.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, SigningKey};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// What version 1 does not have: the number of the version, and extensions.
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;

/// Turns a certificate of version 3 into one of version 1, signed again by `key`, in PEM form.
pub(super) fn of(der: &[u8], key: &KeyPair) -> Option<String> {
    let (signed, rest) = first(content(der)?)?;
    let (algorithm, _) = first(rest)?;
    let (mut parts, mut left) = (Vec::new(), content(signed)?);
    while !left.is_empty() {
        let (part, behind) = first(left)?;
        if !matches!(part.first(), Some(&(VERSION | EXTENSIONS))) {
            parts.extend_from_slice(part);
        }
        left = behind;
    }
    let signed = element(SEQUENCE, &parts);
    let signature = element(BIT_STRING, &[&[0][..], &key.sign(&signed).ok()?].concat());
    let base64 = STANDARD.encode(element(SEQUENCE, &[&signed[..], algorithm, &signature].concat()));
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
    Some(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
}

/// Sizes of header and content of the element at the front.
fn sizes(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        short @ 0..=0x7F => Some((2, usize::from(short))),
        long => {
            let digits = usize::from(long & 0x7F);
            let length =
                bytes.get(2..2 + digits)?.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            Some((2 + digits, length))
        }
    }
}

fn content(element: &[u8]) -> Option<&[u8]> {
    let (header, length) = sizes(element)?;
    element.get(header..header + length)
}

/// The element at the front, and what is behind it.
fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, length) = sizes(bytes)?;
    bytes.split_at_checked(header + length)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    match length {
        [0, short @ 0..=0x7F] => [&[tag, short], content].concat(),
        [0, long] => [&[tag, 0x81, long], content].concat(),
        [high, low] => [&[tag, 0x82, high, low], content].concat(),
    }
}
