//! Certificates: a CA for each test, and what it issues to servers and clients.

mod version_1;

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
    date_time_ymd,
};

use crate::{Error, guard};

/// The algorithm with which a CA signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA with P-256 and SHA-256.
    #[default]
    EcdsaSha256,
    /// ECDSA with P-384 and SHA-384.
    EcdsaSha384,
    /// Ed25519, which names no separate hash function.
    Ed25519,
}

impl Signature {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Signature::EcdsaSha256 => &PKCS_ECDSA_P256_SHA256,
            Signature::EcdsaSha384 => &PKCS_ECDSA_P384_SHA384,
            Signature::Ed25519 => &PKCS_ED25519,
        }
    }
}

/// Who issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both in PEM form.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub pem: String,
    /// Its private key: PKCS#8, not encrypted.
    pub key: String,
}

/// Where a certificate was written.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// A CA that signs with ECDSA and SHA-256.
    pub fn new(name: &str) -> Result<Authority, Error> {
        Authority::signing_with(name, Signature::default())
    }

    /// A CA with a certain signature.
    pub fn signing_with(name: &str, signature: Signature) -> Result<Authority, Error> {
        let key = KeyPair::generate_for(signature.algorithm()).map_err(failed)?;
        let mut about = named(&[], name)?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = about.self_signed(&key).map_err(failed)?.pem();
        Ok(Authority { issuer: Issuer::new(about, key), pem })
    }

    /// Its own certificate, to be trusted, in PEM form.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For a server that is reached by these host names and addresses.
    pub fn server(&self, names: &[&str]) -> Result<Certificate, Error> {
        self.issue(server(names)?)
    }

    /// As [`Authority::server`], but of the past.
    pub fn expired_server(&self, names: &[&str]) -> Result<Certificate, Error> {
        let mut about = server(names)?;
        about.not_before = date_time_ymd(2020, 1, 1);
        about.not_after = date_time_ymd(2020, 2, 1);
        self.issue(about)
    }

    /// For a server, with a common name and nothing else, as `openssl req` asks for one.
    pub fn server_by_common_name(&self, name: &str) -> Result<Certificate, Error> {
        self.issue(named(&[], name)?)
    }

    /// The same of X.509 version 1, as `openssl x509 -req` issues without an extensions file.
    pub fn version_1(&self, name: &str) -> Result<Certificate, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let about = named(&[], name)?.signed_by(&key, &self.issuer).map_err(failed)?;
        let pem = version_1::of(about.der(), self.issuer.key()).ok_or_else(|| {
            Error::system("make a certificate")(std::io::Error::other("it is not what was expected"))
        })?;
        Ok(Certificate { pem, key: key.serialize_pem() })
    }

    /// For a client; servers may take its common name for the user's.
    pub fn client(&self, common_name: &str) -> Result<Certificate, Error> {
        let mut about = named(&[], common_name)?;
        about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(about)
    }

    fn issue(&self, about: CertificateParams) -> Result<Certificate, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let pem = about.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Certificate { pem, key: key.serialize_pem() })
    }
}

impl Certificate {
    /// One that a server issued to itself, as PostgreSQL's manual does (`openssl req -new -x509`): the certificate of a CA,
    /// with a common name and nothing else.
    pub fn self_signed(name: &str) -> Result<Certificate, Error> {
        let mut about = named(&[], name)?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Certificate::signed_by_itself(&about)
    }

    /// As [`Certificate::self_signed`], but of the past.
    pub fn expired_self_signed(name: &str) -> Result<Certificate, Error> {
        let mut about = named(&[], name)?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.not_after = date_time_ymd(2020, 2, 1);
        Certificate::signed_by_itself(&about)
    }

    fn signed_by_itself(about: &CertificateParams) -> Result<Certificate, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let pem = about.self_signed(&key).map_err(failed)?.pem();
        Ok(Certificate { pem, key: key.serialize_pem() })
    }

    /// Writes `NAME.pem` and `NAME.key` into a folder; the servers' user owns them, and no other user may read the key.
    pub fn write(&self, folder: &Path, name: &str) -> Result<CertificateFiles, Error> {
        let files = CertificateFiles {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        for (path, content, mode) in [(&files.certificate, &self.pem, 0o644), (&files.key, &self.key, 0o600)]
        {
            guard::write_for_servers(path, content, mode)?;
        }
        Ok(files)
    }
}

fn server(names: &[&str]) -> Result<CertificateParams, Error> {
    let mut about = named(names, names.first().unwrap_or(&"server"))?;
    about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(about)
}

/// For so long that no clock of a test machine is wrong enough.
fn named(names: &[&str], common_name: &str) -> Result<CertificateParams, Error> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut about = CertificateParams::new(names).map_err(failed)?;
    about.distinguished_name.push(DnType::CommonName, common_name);
    about.not_before = date_time_ymd(2020, 1, 1);
    about.not_after = date_time_ymd(2100, 1, 1);
    Ok(about)
}

fn failed(error: rcgen::Error) -> Error {
    Error::system("make a certificate")(std::io::Error::other(error))
}
