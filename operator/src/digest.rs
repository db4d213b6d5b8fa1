//! Digests tell whether something is as it was before without keeping it. Each has a type, so that none is taken for another.

use sha2::{Digest, Sha256};

macro_rules! digest {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(String);

        impl $name {
            /// Of texts, each told apart from the next.
            pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> $name {
                $name(hexadecimal(texts))
            }

            /// In hexadecimal.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

digest! {
    /// Of the configuration file of a relay, which pods read when they start.
    ConfigurationDigest
}
digest! {
    /// Of all objects of a relay.
    WorkloadDigest
}
digest! {
    /// Of what the Secrets of one side hold.
    SecretsDigest
}
digest! {
    /// Of all settings of a connection to a database, Secrets included.
    ConnectionKey
}
digest! {
    /// Of all settings of a Kafka client, Secrets included.
    ClientKey
}

fn hexadecimal<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
