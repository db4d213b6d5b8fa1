//! Enums whose variants have names that others read: in `/status`, metrics, headers, or the environment of a test.

/// Defines such an enum together with its names, so that no variant can be missing in `ALL`.
macro_rules! named {
    ($(#[$doc:meta])* pub enum $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            pub const ALL: [$type; [$($name),*].len()] = [$($type::$variant),*];

            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }
    };
}
