//! Questions to Kafka that take a while. Each runs on a thread where blocking is allowed; the answer comes back
//! through a queue, and the rows that need it wait meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::kafka::search::{FoundTopic, Phantoms, Reach, SearchError, Searcher};
use crate::kafka::sink::Roster;
use crate::progress::high_mark::{Hole, Searched};
use crate::status::Status;
use crate::topics::partitions::{PartitionId, ToInspect};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::Seen;
use crate::trouble::Reason;

/// How often a topic that does not exist is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The answer to a question.
#[derive(Debug)]
pub enum Answer {
    /// A topic was found.
    Topic {
        /// Its name.
        name: String,
        /// What it looks like.
        found: FoundTopic,
    },
    /// A topic that has grown was looked at.
    Grown {
        /// Its name.
        name: String,
        /// What it looks like now.
        found: FoundTopic,
    },
    /// The settings of a topic.
    Settings {
        /// Its name.
        topic: String,
        /// `None` where they may not be read.
        settings: Option<TopicSettings>,
    },
    /// A partition holds what is remembered of it.
    Inspected {
        /// Which.
        partition: PartitionId,
        /// Where a search of it starts.
        search: i64,
    },
    /// What the metadata says of topics; `None` while Kafka does not answer.
    Looked(Option<BTreeMap<String, Seen>>),
    /// A partition was searched.
    Searched {
        /// Which.
        partition: PartitionId,
        /// What it holds.
        found: Searched,
        /// What it holds of another history.
        phantoms: Phantoms,
    },
    /// A hole was read.
    HoleRead {
        /// In which partition.
        partition: PartitionId,
        /// Which.
        hole: Hole,
        /// What it holds.
        found: Searched,
    },
    /// Whether Kafka could be reached.
    Reached(Reach),
    /// There is no answer.
    Failed(SearchError),
}

/// Asks questions and queues the answers.
pub struct Jobs {
    searcher: Arc<Searcher>,
    answers: mpsc::UnboundedSender<Answer>,
    status: Status,
}

impl Jobs {
    /// Questions go to `searcher`; a topic that does not exist is shown in `status`.
    pub fn new(searcher: Arc<Searcher>, status: Status) -> (Jobs, mpsc::UnboundedReceiver<Answer>) {
        // Unbounded: there is at most one question per partition.
        let (answers, queue) = mpsc::unbounded_channel();
        (Jobs { searcher, answers, status }, queue)
    }

    /// Looks for a topic, until it exists.
    pub fn find_topic(&self, name: &str) {
        let (name, status) = (name.to_owned(), self.status.clone());
        self.ask(move |searcher| {
            wait_for_topic(searcher, &name, &status)?;
            let found = searcher.topic(&name)?;
            Ok(Answer::Topic { name, found })
        });
    }

    /// Looks at a topic that has more partitions than before, until the producers know of them as well: they would not
    /// take records for them.
    pub fn look_at_growth(&self, name: &str, producers: Roster) {
        let name = name.to_owned();
        self.ask(move |searcher| {
            let found = searcher.topic(&name)?;
            while !producers.know(&name, found.partitions) {
                searcher.sleep(LOOK_AGAIN)?;
            }
            Ok(Answer::Grown { name, found })
        });
    }

    /// Reads the settings of a topic, and compares its partitions with what is remembered of them. A topic that does
    /// not exist is waited for.
    pub fn inspect(&self, topic: &str, partitions: Vec<ToInspect>) {
        let (topic, status) = (topic.to_owned(), self.status.clone());
        self.ask_for_several(move |searcher, answer| {
            wait_for_topic(searcher, &topic, &status)?;
            let settings = searcher.describe(&topic);
            answer(Answer::Settings { topic: topic.clone(), settings });
            for ToInspect { id, number, floor } in partitions {
                let search =
                    searcher.inspect(&topic, number, &floor, settings.is_some_and(|s| s.compacted))?;
                answer(Answer::Inspected { partition: id, search });
            }
            Ok(())
        });
    }

    /// Reads the settings of a topic.
    pub fn describe(&self, topic: &str) {
        let topic = topic.to_owned();
        self.ask(move |searcher| {
            let settings = searcher.describe(&topic);
            Ok(Answer::Settings { topic, settings })
        });
    }

    /// Looks at the metadata of topics.
    pub fn look(&self, topics: Vec<String>) {
        self.ask(move |searcher| Ok(Answer::Looked(searcher.look(&topics))));
    }

    /// Searches a partition from `from` to its end, once its end is as good as acknowledged.
    pub fn search(
        &self,
        partition: PartitionId,
        topic: &str,
        number: i32,
        from: i64,
        min_in_sync: Option<usize>,
    ) {
        let topic = topic.to_owned();
        self.ask(move |searcher| {
            searcher.wait_until_replicated(&topic, number, min_in_sync)?;
            let (found, phantoms) = searcher.search(&topic, number, from, None)?;
            Ok(Answer::Searched { partition, found, phantoms })
        });
    }

    /// Asks whether Kafka can be reached, also by these producers.
    pub fn reach(&self, producers: Option<Roster>) {
        self.ask(move |searcher| {
            let reach = searcher.reach()?;
            let lost = reach == Reach::There && producers.is_some_and(|producers| producers.has_no_broker());
            Ok(Answer::Reached(if lost { Reach::NotByOurClients } else { reach }))
        });
    }

    /// Reads a hole.
    pub fn read_hole(&self, partition: PartitionId, topic: &str, number: i32, hole: Hole) {
        let topic = topic.to_owned();
        self.ask(move |searcher| {
            let (found, _) = searcher.search(&topic, number, hole.from, Some(hole))?;
            Ok(Answer::HoleRead { partition, hole, found })
        });
    }

    fn ask(&self, question: impl FnOnce(&Searcher) -> Result<Answer, SearchError> + Send + 'static) {
        self.ask_for_several(move |searcher, answer| {
            answer(question(searcher)?);
            Ok(())
        });
    }

    fn ask_for_several(
        &self,
        question: impl FnOnce(&Searcher, &dyn Fn(Answer)) -> Result<(), SearchError> + Send + 'static,
    ) {
        let (searcher, answers) = (Arc::clone(&self.searcher), self.answers.clone());
        tokio::task::spawn_blocking(move || {
            // Nobody listens any more when the session has ended.
            let answer = |answer| drop(answers.send(answer));
            question(&searcher, &answer).unwrap_or_else(|error| answer(Answer::Failed(error)));
        });
    }
}

/// Waits until a topic exists, and says so meanwhile.
fn wait_for_topic(searcher: &Searcher, name: &str, status: &Status) -> Result<(), SearchError> {
    let mut said = false;
    while !searcher.exists(name)? {
        if !std::mem::replace(&mut said, true) {
            tracing::warn!(topic = %name, "the topic does not exist; {}", Reason::TopicMissing.remedy());
        }
        status.topic_missing(name, true);
        searcher.sleep(LOOK_AGAIN)?;
    }
    status.topic_missing(name, false);
    Ok(())
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.searcher.cancel();
    }
}
