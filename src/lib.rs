//! redisdr: log-based disaster recovery for Redis and Valkey, as a module.
//!
//! Direction of imports: `oplog_format` <- [`store`] <- {[`capture`], [`snapshot`], [`link`], [`apply`]} <-
//! [`runtime`] <- [`ffi`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod apply;
pub mod capture;
pub mod config;
pub mod ffi;
pub mod link;
pub mod local;
pub mod runtime;
pub mod snapshot;
pub mod status;
pub mod store;
