//! Bytes and entries of the redisdr oplog.
