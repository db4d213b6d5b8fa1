#![doc = include_str!("../README.md")]

mod answer;
mod halt;
mod token;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, NulError, c_char};
use std::time::Duration;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use self::answer::{AdminRequest, Owned, text};
pub use self::halt::{halt, is_halt};
pub use self::token::{Token, report_token_failure, set_token};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rejected by a broker or by librdkafka.
    #[error("{message} ({code})")]
    Refused {
        /// The error code.
        code: RDKafkaErrorCode,
        /// The error message.
        message: String,
    },
    /// A name contains a NUL.
    #[error("a name contains a NUL")]
    Name(#[from] NulError),
    /// The request timed out.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// The error code of the broker or of librdkafka.
    pub fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            Error::Name(_) | Error::Timeout(_) => None,
        }
    }
}

/// A change of one key of a topic's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigChange<'a> {
    /// Sets this value.
    Set(&'a str),
    /// Resets the key to the broker's default.
    Delete,
}

/// A topic, as described by Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic id, which changes when a topic is recreated. Brokers before Kafka 3.1 have none.
    pub id: Option<String>,
    /// Number of partitions.
    pub partitions: usize,
    /// The lowest number of replicas of the partitions whose replicas are all in sync. `None` if there is no such
    /// partition: then replicas are being moved, or brokers are down, and the final number is not known.
    pub fewest_replicas: Option<usize>,
}

/// Describes those of `topics` that exist and are visible with these credentials. Only these are requested: the
/// metadata of a whole cluster can be megabytes.
///
/// # Errors
/// Kafka does not respond.
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
    // SAFETY: the strings exist longer than this call, which copies them.
    let topics = unsafe {
        let topics = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        Owned::new(topics, ffi::rd_kafka_TopicCollection_destroy)
    };
    // SAFETY: client, collection, options and queue exist until the result has arrived.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_DescribeTopics(client.native_ptr(), topics.pointer(), options, queue);
    })?;
    // SAFETY: the event is a DescribeTopics result, the only request on this queue, and owns everything read here.
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
/// `topic` belongs to a result that exists.
unsafe fn described(topic: *const ffi::rd_kafka_TopicDescription_t) -> Option<(String, TopicDescription)> {
    // SAFETY: guaranteed by the caller; what is read belongs to the result.
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

/// From (replicas, in-sync replicas) of each partition. While a partition is moved it has its old and its new replicas,
/// and the new ones are not in sync before they have all records.
fn fewest_settled(partitions: impl Iterator<Item = (usize, usize)>) -> Option<usize> {
    partitions.filter(|(replicas, in_sync)| replicas == in_sync).map(|(replicas, _)| replicas).min()
}

/// The id of the cluster that answers now. A client keeps the first id it received, even if another cluster answers
/// under the same name later. `None` where brokers do not report it.
///
/// # Errors
/// Kafka does not respond.
pub fn cluster_id<C: ClientContext>(client: &Client<C>, within: Duration) -> Result<Option<String>, Error> {
    let question =
        AdminRequest::new(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER, within)?;
    // SAFETY: client, options and queue exist until the result has arrived.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_DescribeCluster(client.native_ptr(), options, queue)
    })?;
    // SAFETY: the event is a DescribeCluster result, the only request on this queue, and owns everything read here.
    let id = unsafe {
        let result = ffi::rd_kafka_event_DescribeCluster_result(answer.pointer());
        text(ffi::rd_kafka_DescribeCluster_result_cluster_id(result))
    };
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// Changes keys of a topic's configuration, and keeps all others. Kafka 2.3 and newer.
///
/// # Errors
/// Kafka does not respond, or rejects the change.
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
    // SAFETY: the name exists longer than this call, which copies it.
    let resource = unsafe {
        let kind = ffi::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let resource = ffi::rd_kafka_ConfigResource_new(kind, topic.as_ptr());
        Owned::new(resource, ffi::rd_kafka_ConfigResource_destroy)
    };
    for (key, alteration) in alterations {
        add(&resource, key, *alteration)?;
    }
    let mut resources = [resource.pointer()];
    // SAFETY: client, resource, options and queue exist until the result has arrived; librdkafka copies the resource.
    let answer = question.send(|options, queue| unsafe {
        ffi::rd_kafka_IncrementalAlterConfigs(client.native_ptr(), resources.as_mut_ptr(), 1, options, queue);
    })?;
    // SAFETY: the event is an IncrementalAlterConfigs result, the only request on this queue, and owns everything read
    // here.
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
    // SAFETY: key and value exist longer than this call, which copies them; this call destroys the error.
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

/// An array owned by librdkafka.
///
/// # Safety
/// `first` points to `count` values that exist as long as the slice is used, or is NULL.
unsafe fn slice<'a, T>(first: *mut *const T, count: usize) -> &'a [*const T] {
    match first.is_null() {
        true => &[],
        // SAFETY: guaranteed by the caller.
        false => unsafe { std::slice::from_raw_parts(first, count) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_of_a_partition_that_is_being_moved_are_not_counted() {
        let fewest = |partitions: &[(usize, usize)]| fewest_settled(partitions.iter().copied());
        assert_eq!(fewest(&[(3, 3), (2, 2), (3, 3)]), Some(2));
        assert_eq!(fewest(&[(4, 3), (3, 3)]), Some(3), "one that gets another replica");
        assert_eq!(fewest(&[(4, 3)]), None);
        assert_eq!(fewest(&[]), None);
    }
}
