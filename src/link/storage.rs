//! The log as the link uses it.

pub use crate::store::{Log, LogReader, ReadError};
