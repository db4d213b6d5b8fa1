//! What librdkafka's admin API has and the `rdkafka` crate (0.39) does not: descriptions of topics with their ids, the id of the cluster that
//! answers, and configurations that are altered key by key, so that what another client sets at the same moment stays.
//!
//! Besides, [`halt`] ends a producer's sending.
//!
//! Every admin call blocks until Kafka has answered, or the time is up. The only crate here with `unsafe`: each block says why it is sound.

mod answer;
mod halt;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, NulError, c_char};
use std::time::Duration;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use self::answer::{AdminRequest, Owned, text};
pub use self::halt::{halt, is_halt};

/// What Kafka, or the library, did not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// With the code of the broker or of the library, and its words.
    #[error("{message} ({code})")]
    Refused {
        /// The code.
        code: RDKafkaErrorCode,
        /// Its words.
        message: String,
    },
    /// A name with a NUL in it is no name.
    #[error("a name has a NUL in it")]
    Name(#[from] NulError),
    /// Nothing came back.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// The code of the broker or of the library.
    pub fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            Error::Name(_) | Error::Timeout(_) => None,
        }
    }
}

/// What becomes of a key of a topic's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigChange<'a> {
    /// It has this value.
    Set(&'a str),
    /// It is the broker's again.
    Delete,
}

/// A topic, as Kafka describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// By which a topic that was recreated is told from the one before. Brokers before Kafka 3.1 know none.
    pub id: Option<String>,
    /// Number of partitions.
    pub partitions: usize,
    /// Replicas of the partition that has the fewest, of the partitions whose replicas are all in sync. `None` where there is no such
    /// partition: then replicas are being moved, or brokers are away, and how many there will be is not known.
    pub fewest_replicas: Option<usize>,
}

/// Describes those of these topics that exist and that these credentials may see. Only these are asked for: metadata of a whole cluster
/// can be megabytes.
///
/// # Errors
/// Kafka does not answer.
pub fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    within: Duration,
) -> Result<BTreeMap<String, TopicDescription>, Error> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let names: Vec<CString> = names.iter().map(|name| CString::new(*name)).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let question =
        AdminRequest::new(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, within)?;
    // SAFETY: the pointers are of strings that live longer than this call, which copies them.
    let topics = unsafe {
        let topics = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        Owned::new(topics, ffi::rd_kafka_TopicCollection_destroy)
    };
    // SAFETY: client, collection, options and queue live until the answer has come.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_DescribeTopics(client.native_ptr(), topics.pointer(), options, queue);
    })?;
    // SAFETY: the event is a DescribeTopics result, since nothing else was asked on its queue, and owns all that is read here.
    unsafe {
        let result = ffi::rd_kafka_event_DescribeTopics_result(answer.pointer());
        let mut count = 0;
        let found = ffi::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok(slice(found, count).iter().filter_map(|topic| described(*topic)).collect())
    }
}

/// The name and the description of a topic that exists.
///
/// # Safety
/// `topic` is of an answer that lives.
unsafe fn described(topic: *const ffi::rd_kafka_TopicDescription_t) -> Option<(String, TopicDescription)> {
    // SAFETY: the caller's promise; what is read belongs to the answer.
    unsafe {
        let error = ffi::rd_kafka_error_code(ffi::rd_kafka_TopicDescription_error(topic));
        if error != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let id = ffi::rd_kafka_TopicDescription_topic_id(topic);
        let bits =
            (ffi::rd_kafka_Uuid_most_significant_bits(id), ffi::rd_kafka_Uuid_least_significant_bits(id));
        let mut count = 0;
        let partitions = slice(ffi::rd_kafka_TopicDescription_partitions(topic, &raw mut count), count);
        let replicas = partitions.iter().map(|partition| {
            let (mut replicas, mut in_sync) = (0, 0);
            ffi::rd_kafka_TopicPartitionInfo_replicas(*partition, &raw mut replicas);
            ffi::rd_kafka_TopicPartitionInfo_isr(*partition, &raw mut in_sync);
            (replicas, in_sync)
        });
        let description = TopicDescription {
            id: (bits != (0, 0)).then(|| text(ffi::rd_kafka_Uuid_base64str(id))),
            partitions: partitions.len(),
            fewest_replicas: fewest_settled(replicas),
        };
        Some((text(ffi::rd_kafka_TopicDescription_name(topic)), description))
    }
}

/// Of (replicas, those in sync). While a partition is moved it has the replicas that it had and those that it will have, and the new ones
/// are not in sync before they have everything.
fn fewest_settled(partitions: impl Iterator<Item = (usize, usize)>) -> Option<usize> {
    partitions.filter(|(replicas, in_sync)| replicas == in_sync).map(|(replicas, _)| replicas).min()
}

/// The id of the cluster that answers now. A client keeps the first id that it was told, even if another cluster answers by the same name
/// later. `None` where brokers do not tell it.
///
/// # Errors
/// Kafka does not answer.
pub fn cluster_id<C: ClientContext>(client: &Client<C>, within: Duration) -> Result<Option<String>, Error> {
    let question =
        AdminRequest::new(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER, within)?;
    // SAFETY: client, options and queue live until the answer has come.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_DescribeCluster(client.native_ptr(), options, queue)
    })?;
    // SAFETY: the event is a DescribeCluster result, since nothing else was asked on its queue, and owns all that is read here.
    let id = unsafe {
        let result = ffi::rd_kafka_event_DescribeCluster_result(answer.pointer());
        text(ffi::rd_kafka_DescribeCluster_result_cluster_id(result))
    };
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// Alters keys of a topic's configuration, and leaves all others as they are. Kafka 2.3 and newer.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn alter_topic_config<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    alterations: &BTreeMap<&str, ConfigChange<'_>>,
    within: Duration,
) -> Result<(), Error> {
    let question = AdminRequest::new(
        client,
        ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS,
        within,
    )?;
    let topic = CString::new(topic)?;
    // SAFETY: the name lives longer than this call, which copies it.
    let resource = unsafe {
        let kind = ffi::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let resource = ffi::rd_kafka_ConfigResource_new(kind, topic.as_ptr());
        Owned::new(resource, ffi::rd_kafka_ConfigResource_destroy)
    };
    for (key, alteration) in alterations {
        add(&resource, key, *alteration)?;
    }
    let mut resources = [resource.pointer()];
    // SAFETY: client, resource, options and queue live until the answer has come; the library copies the resource.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_IncrementalAlterConfigs(client.native_ptr(), resources.as_mut_ptr(), 1, options, queue);
    })?;
    // SAFETY: the event is an IncrementalAlterConfigs result, since nothing else was asked on its queue, and owns all that is read here.
    unsafe {
        let result = ffi::rd_kafka_event_IncrementalAlterConfigs_result(answer.pointer());
        let mut count = 0;
        let altered = ffi::rd_kafka_IncrementalAlterConfigs_result_resources(result, &raw mut count);
        for resource in slice(altered, count) {
            let code = ffi::rd_kafka_ConfigResource_error(*resource);
            if code != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                let message = text(ffi::rd_kafka_ConfigResource_error_string(*resource));
                return Err(Error::Refused { code: code.into(), message });
            }
        }
    }
    Ok(())
}

fn add(
    resource: &Owned<ffi::rd_kafka_ConfigResource_t>,
    key: &str,
    alteration: ConfigChange<'_>,
) -> Result<(), Error> {
    use ffi::rd_kafka_AlterConfigOpType_t as Kind;
    let key = CString::new(key)?;
    let (kind, value) = match alteration {
        ConfigChange::Set(value) => (Kind::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET, Some(CString::new(value)?)),
        ConfigChange::Delete => (Kind::RD_KAFKA_ALTER_CONFIG_OP_TYPE_DELETE, None),
    };
    let value = value.as_deref().map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value live longer than this call, which copies them; the error is this call's to destroy.
    unsafe {
        let error = ffi::rd_kafka_ConfigResource_add_incremental_config(
            resource.pointer(),
            key.as_ptr(),
            kind,
            value,
        );
        if error.is_null() {
            return Ok(());
        }
        let (code, message) =
            (ffi::rd_kafka_error_code(error).into(), text(ffi::rd_kafka_error_string(error)));
        ffi::rd_kafka_error_destroy(error);
        Err(Error::Refused { code, message })
    }
}

/// An array of the library's.
///
/// # Safety
/// `first` points at `count` values that live as long as the slice is used, or is NULL.
unsafe fn slice<'a, T>(first: *mut *const T, count: usize) -> &'a [*const T] {
    match first.is_null() {
        true => &[],
        // SAFETY: the caller's promise.
        false => unsafe { std::slice::from_raw_parts(first, count) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_of_a_partition_that_is_moved_are_not_counted() {
        let fewest = |partitions: &[(usize, usize)]| fewest_settled(partitions.iter().copied());
        assert_eq!(fewest(&[(3, 3), (2, 2), (3, 3)]), Some(2));
        assert_eq!(fewest(&[(4, 3), (3, 3)]), Some(3), "one that gets another replica");
        assert_eq!(fewest(&[(4, 3)]), None);
        assert_eq!(fewest(&[]), None);
    }
}
