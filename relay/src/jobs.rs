//! Questions to Kafka that take a while. Each runs on a thread where blocking is allowed; the answer comes back
//! through a queue, and the rows that need it wait meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::high_mark::{Hole, Searched};
use crate::partitions::PartitionId;
use crate::search::{FoundTopic, SearchError, Searcher};
use crate::status::Status;
use crate::trouble::{Reason, Trouble};

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
    /// A partition was searched.
    Searched {
        /// Which.
        partition: PartitionId,
        /// What it holds.
        found: Searched,
    },
    /// A hole was read.
    HoleRead {
        /// In which partition.
        partition: PartitionId,
        /// What it holds.
        found: Searched,
    },
    /// Whether Kafka could be reached.
    Reachable(bool),
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
            let mut said = false;
            loop {
                if let Some(found) = searcher.topic(&name)? {
                    status.blocked(None);
                    return Ok(Answer::Topic { name, found });
                }
                let trouble = Trouble::new(Reason::TopicMissing, format!("topic {name} does not exist"));
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(topic = %name, "{trouble}");
                }
                status.blocked(Some(trouble));
                searcher.sleep(LOOK_AGAIN)?;
            }
        });
    }

    /// Searches a partition from `from` to its end.
    pub fn search(&self, partition: PartitionId, topic: &str, number: i32, from: i64) {
        let topic = topic.to_owned();
        self.ask(move |searcher| {
            let found = searcher.search(&topic, number, from, None)?;
            Ok(Answer::Searched { partition, found })
        });
    }

    /// Asks whether Kafka can be reached.
    pub fn is_reachable(&self) {
        self.ask(|searcher| Ok(Answer::Reachable(searcher.is_reachable())));
    }

    /// Reads a hole.
    pub fn read_hole(&self, partition: PartitionId, topic: &str, number: i32, hole: Hole) {
        let topic = topic.to_owned();
        self.ask(move |searcher| {
            let found = searcher.search(&topic, number, hole.from, Some(hole.until))?;
            Ok(Answer::HoleRead { partition, found })
        });
    }

    fn ask(&self, question: impl FnOnce(&Searcher) -> Result<Answer, SearchError> + Send + 'static) {
        let (searcher, answers) = (Arc::clone(&self.searcher), self.answers.clone());
        tokio::task::spawn_blocking(move || {
            let answer = question(&searcher).unwrap_or_else(Answer::Failed);
            // Nobody listens any more when the session has ended.
            drop(answers.send(answer));
        });
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.searcher.cancel();
    }
}
