//! A JSON Web Key Set (RFC 7517): which of its keys verify signatures, and each with which algorithm.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse, RSAKeyParameters,
};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

/// Shorter RSA keys are not allowed (RFC 7518, section 3.3).
const SHORTEST_RSA_KEY_BYTES: usize = 2048 / 8;

/// A key, with the one algorithm it verifies.
#[derive(Clone)]
pub struct Key {
    /// Its `kid`.
    pub id: Option<String>,
    /// Its `alg`, or what is usual for its type. The token has no say in it (RFC 8725, section 3.1).
    pub algorithm: Algorithm,
    /// The key.
    pub key: DecodingKey,
}

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It is something else.
    #[error("it is not a JSON Web Key Set")]
    NotASet(#[source] serde_json::Error),
    /// It has keys for other purposes only.
    #[error("the set has no RSA, P-256, P-384 or Ed25519 key for signatures")]
    NoKey,
}

/// The keys of a set that verify signatures. At least one.
pub fn parse(text: &[u8]) -> Result<Vec<Key>, SetError> {
    let set: JwkSet = serde_json::from_slice(text).map_err(SetError::NotASet)?;
    let keys: Vec<Key> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() { Err(SetError::NoKey) } else { Ok(keys) }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let common = &jwk.common;
    let is_for_signatures = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
    let operations = common.key_operations.as_ref();
    let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !(is_for_signatures && verifies) {
        return None;
    }
    let (algorithm, key) = (algorithm(jwk)?, DecodingKey::from_jwk(jwk).ok()?);
    Some(Key { id: common.key_id.clone(), algorithm, key })
}

fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let usual = match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => is_long_enough(key).then_some(Algorithm::RS256)?,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => Algorithm::ES384,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let Some(declared) = common_algorithm(jwk)? else { return Some(usual) };
    // An RSA key serves several algorithms, and its set says which one. Of others, the curve decides.
    let is_rsa = |algorithm| AlgorithmFamily::Rsa.algorithms().contains(&algorithm);
    (declared == usual || (is_rsa(declared) && is_rsa(usual))).then_some(declared)
}

/// What the set declares, if anything; none at all for one that signs nothing.
fn common_algorithm(jwk: &Jwk) -> Option<Option<Algorithm>> {
    match jwk.common.key_algorithm {
        None => Some(None),
        Some(declared) => declared.to_string().parse().ok().map(Some),
    }
}

fn is_long_enough(key: &RSAKeyParameters) -> bool {
    URL_SAFE_NO_PAD.decode(&key.n).is_ok_and(|modulus| modulus.len() >= SHORTEST_RSA_KEY_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rsa(bytes: usize) -> Value {
        let mut modulus = vec![0xd5; bytes];
        modulus.extend([1]);
        json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&modulus[1..]), "e": "AQAB"})
    }

    fn elliptic() -> Value {
        json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
               "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})
    }

    fn algorithms(keys: &[Value]) -> Vec<Algorithm> {
        let set = json!({ "keys": keys }).to_string();
        parse(set.as_bytes()).map(|keys| keys.iter().map(|key| key.algorithm).collect()).unwrap_or_default()
    }

    fn with(mut key: Value, member: &str, value: Value) -> Value {
        key[member] = value;
        key
    }

    #[test]
    fn a_key_verifies_one_algorithm_its_own_or_the_usual_one_of_its_type() {
        assert_eq!(algorithms(&[rsa(256)]), [Algorithm::RS256]);
        assert_eq!(algorithms(&[with(rsa(256), "alg", json!("PS256"))]), [Algorithm::PS256]);
        assert_eq!(algorithms(&[elliptic()]), [Algorithm::ES256]);
        let edwards =
            json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        assert_eq!(algorithms(&[edwards]), [Algorithm::EdDSA]);
    }

    #[test]
    fn keys_for_anything_else_are_left_out() {
        let others = [
            with(elliptic(), "use", json!("enc")),
            with(elliptic(), "key_ops", json!(["sign"])),
            with(elliptic(), "alg", json!("ES384")),
            with(elliptic(), "alg", json!("ECDH-ES")),
            with(rsa(256), "alg", json!("RSA-OAEP")),
            with(rsa(256), "alg", json!("HS256")),
            rsa(128),
            json!({"kty": "oct", "k": "c2VjcmV0"}),
            json!({"kty": "new"}),
        ];
        for other in others {
            assert_eq!(algorithms(std::slice::from_ref(&other)), [], "{other}");
            assert_eq!(algorithms(&[other, elliptic()]), [Algorithm::ES256], "the rest of the set is used");
        }
    }
}
