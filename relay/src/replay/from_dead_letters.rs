//! Sends dead letters again.

use std::ops::ControlFlow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::ids::EventIds;
use super::{Replay, ReplayHandle, ReplayRejected, ReplaySource};
use crate::config::Config;
use crate::dead_letters::reader::{DeadLetter, Reader};

/// Which dead letters to send again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    #[serde(default)]
    pub ids: EventIds,
    #[serde(default)]
    pub all: bool,
    /// Only those written at this time or later.
    #[serde(default)]
    pub since: Option<DateTime<Utc>>,
}

impl Selection {
    fn matches(&self, letter: &DeadLetter) -> bool {
        self.all || letter.row.id.as_ref().is_some_and(|id| self.ids.contains(id))
    }
}

impl ReplayHandle {
    /// Starts to send the dead letters of `selection` again. Each result is one line; the last line is a summary.
    pub fn replay_dead_letters(
        &self,
        config: &Arc<Config>,
        selection: Selection,
    ) -> Result<mpsc::Receiver<Value>, ReplayRejected> {
        if selection.ids.is_empty() && !selection.all {
            return Err(ReplayRejected::NothingSelected("'ids', or 'all': true"));
        }
        let topic = config.delivery.dead_letter_topic.clone().ok_or(ReplayRejected::NoTopic)?;
        let (replay, answer) = self.begin(config, ReplaySource::DeadLetters, selection.ids.clone())?;
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || run(replay, &topic, &selection, &runtime));
        Ok(answer)
    }
}

fn run(mut replay: Replay, topic: &str, selection: &Selection, runtime: &Handle) {
    let source = replay.config.source.event_source();
    let read = Reader::new(&replay.config.sink, topic).and_then(|reader| {
        reader.read(selection.since, |letter| {
            // Those of other outboxes are replayed by their relays.
            if letter.source.as_ref() != Some(&source) || !selection.matches(&letter) {
                return ControlFlow::Continue(());
            }
            let id = letter.row.id.clone();
            let row = runtime.block_on(letter.restored(&replay.config));
            replay.send(id, row, reader.topics())
        })
    });
    replay.finish(read.err().map(|error| error.to_string()), "this outbox has no such dead letter");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::owned_row::OwnedRow;

    #[test]
    fn a_selection_has_ids_or_all() {
        let letter = |id: Option<&str>| DeadLetter {
            row: OwnedRow { id: id.map(Into::into), ..OwnedRow::default() },
            ..DeadLetter::default()
        };
        let some: Selection = serde_json::from_value(json!({"ids": ["a"]})).unwrap();
        assert!(some.matches(&letter(Some("a"))));
        assert!(!some.matches(&letter(Some("b"))) && !some.matches(&letter(None)));
        let all: Selection = serde_json::from_value(json!({"all": true})).unwrap();
        assert!(all.matches(&letter(None)));
        let misspelt = serde_json::from_value::<Selection>(json!({"id": "a"}));
        assert!(misspelt.is_err(), "a typing error is no selection");
    }
}
