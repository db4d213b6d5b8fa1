//! docs/ARCHITECTURE.md draws the present imports between the folders of the relay.

use std::fs;

use lab::build::repository;

use crate::imports::{Graph, folders, modules, path};

/// Any folder may use these; they use none, and are not drawn.
const EVERYWHERE: [&str; 2] = ["error", "failpoint"];
const BEGIN: &str = "<!-- layers: begin -->\n";
const END: &str = "<!-- layers: end -->";

#[test]
fn the_drawing_of_the_relay_is_current() {
    let mut graph = folders(&modules("relay/src"));
    for folder in EVERYWHERE {
        let used = graph.remove(folder).unwrap();
        assert!(used.is_empty(), "{folder} uses {used:?}");
        for others in graph.values_mut() {
            others.remove(folder);
        }
    }
    let drawing = format!("```mermaid\ngraph TD\n{}```\n", arrows(&graph));
    let path = repository().join("docs/ARCHITECTURE.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the drawing has a beginning");
    let (drawn, after) = rest.split_once(END).expect("the drawing has an end");
    if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{drawing}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(drawn, drawing, "docs/ARCHITECTURE.md differs; OUTBOX_TEST_WRITE=1 rewrites it");
}

/// Without the arrows that follow from others.
fn arrows(graph: &Graph) -> String {
    let mut lines = String::new();
    for (folder, used) in graph {
        for other in used {
            let follows =
                used.iter().any(|between| between != other && path(graph, between, other).is_some());
            if !follows {
                lines += &format!("  {folder} --> {other}\n");
            }
        }
    }
    lines
}
