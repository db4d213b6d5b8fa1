//! One event: the outbox [`row`] it is read from and the Kafka [`record`] it becomes. Pure. CloudEvents in binary mode is the only
//! format of records; another one is another encoder beside [`record::RecordEncoder`].

pub mod column_type;
pub mod dead_letter;
pub mod decoded_row;
pub mod owned_row;
pub mod poison;
pub mod record;
pub mod row;
pub mod value;
