//! The migrations are built into the program: a new one has to make it be built again.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
