//! oplogctl: reads the oplog of a redisdr node.
fn main() {}
