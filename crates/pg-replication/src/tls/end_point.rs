//! `tls-server-end-point` (RFC 5929, section 4): the hash of the server's certificate, with the hash function of its
//! signature, except that MD5 and SHA-1 are replaced by SHA-256.
//!
//! The certificate comes from an unauthenticated peer, so it is parsed with checked access, and only as far as needed.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::der::{CONTEXT_0, Der, OBJECT_IDENTIFIER, SEQUENCE};

/// The data to bind to; `None` where the RFC defines none (Ed25519), and for input that is not a certificate.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature } (RFC 5280, section 4.1).
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let mut certificate = Der(Der(certificate).take(SEQUENCE)?);
    certificate.take(SEQUENCE)?;
    let mut algorithm = Der(certificate.take(SEQUENCE)?);
    match algorithm.take(OBJECT_IDENTIFIER)? {
        RSASSA_PSS => pss_hash(algorithm),
        oid => SIGNATURES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash),
    }
}

/// RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm \[0\] AlgorithmIdentifier DEFAULT sha1, … } (RFC 4055).
fn pss_hash(mut algorithm: Der<'_>) -> Option<Hash> {
    let mut parameters = Der(algorithm.take(SEQUENCE)?);
    let Some(hash) = parameters.take(CONTEXT_0) else { return Some(Hash::Sha256) };
    let oid = Der(Der(hash).take(SEQUENCE)?).take(OBJECT_IDENTIFIER)?;
    HASHES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)
}

/// 1.2.840.113549.1.1.10
const RSASSA_PSS: &[u8] = b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0A";

/// Signature algorithms: RSA below 1.2.840.113549.1.1, ECDSA below 1.2.840.10045.4.
const SIGNATURES: [(&[u8], Hash); 11] = [
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x04", Hash::Sha256), // MD5
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x05", Hash::Sha256), // SHA-1
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0E", Hash::Sha224),
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0B", Hash::Sha256),
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0C", Hash::Sha384),
    (b"\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0D", Hash::Sha512),
    (b"\x2A\x86\x48\xCE\x3D\x04\x01", Hash::Sha256), // SHA-1
    (b"\x2A\x86\x48\xCE\x3D\x04\x03\x01", Hash::Sha224),
    (b"\x2A\x86\x48\xCE\x3D\x04\x03\x02", Hash::Sha256),
    (b"\x2A\x86\x48\xCE\x3D\x04\x03\x03", Hash::Sha384),
    (b"\x2A\x86\x48\xCE\x3D\x04\x03\x04", Hash::Sha512),
];

/// Hash functions of RSASSA-PSS: SHA-1 is 1.3.14.3.2.26, the others lie below 2.16.840.1.101.3.4.2.
const HASHES: [(&[u8], Hash); 5] = [
    (b"\x2B\x0E\x03\x02\x1A", Hash::Sha256), // SHA-1
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x04", Hash::Sha224),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x01", Hash::Sha256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x02", Hash::Sha384),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x03", Hash::Sha512),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len() as u16;
        [&[tag, 0x82], &length.to_be_bytes()[..], content].concat()
    }

    /// The structure of a certificate: the signed part and the algorithm.
    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let signed = element(SEQUENCE, &[7; 300]);
        element(SEQUENCE, &[signed, element(SEQUENCE, algorithm), element(3, &[0; 70])].concat())
    }

    fn by(oid: &[u8]) -> Option<Hash> {
        signature_hash(&certificate(&[element(OBJECT_IDENTIFIER, oid), vec![5, 0]].concat()))
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_a_broken_one() {
        for (oid, hash) in SIGNATURES {
            assert_eq!(by(oid), Some(hash), "{oid:02x?}");
        }
        let ed25519 = b"\x2B\x65\x70";
        assert_eq!(by(ed25519), None);
        let certificate = certificate(&element(OBJECT_IDENTIFIER, SIGNATURES[4].0));
        assert_eq!(end_point(&certificate), Some(Sha384::digest(&certificate).to_vec()));
    }

    #[test]
    fn pss_names_its_hash_in_its_parameters() {
        let pss = |parameters: &[u8]| {
            let oid = element(OBJECT_IDENTIFIER, RSASSA_PSS);
            signature_hash(&certificate(&[oid, element(SEQUENCE, parameters)].concat()))
        };
        for (oid, hash) in HASHES {
            let named = element(CONTEXT_0, &element(SEQUENCE, &element(OBJECT_IDENTIFIER, oid)));
            assert_eq!(pss(&named), Some(hash));
        }
        assert_eq!(pss(b""), Some(Hash::Sha256), "SHA-1 when it is not named");
        assert_eq!(pss(&element(CONTEXT_0, b"")), None);
        assert_eq!(signature_hash(&certificate(&element(OBJECT_IDENTIFIER, RSASSA_PSS))), None);
    }

    #[test]
    fn false_lengths_are_rejected() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x05\x30",
            b"\x30\x80",
            b"\x30\x84\xFF\xFF\xFF\xFF",
            b"\x30\x85\0\0\0\0\x01\0",
        ] {
            assert_eq!(end_point(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, at in 0..400_usize, byte: u8) {
            let _ = end_point(&bytes);
            let mut nearly = certificate(&element(OBJECT_IDENTIFIER, SIGNATURES[3].0));
            if let Some(place) = nearly.get_mut(at) {
                *place = byte;
            }
            let _ = end_point(&nearly);
        }
    }
}
