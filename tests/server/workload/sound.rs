//! The workload and the comparison are proved with the server's own replication: if a native replica ends equal, and
//! every write command had effect, then what a target lacks is the module's fault.

use std::sync::Arc;

use super::catalogue::NOT_EXERCISED;
use super::compare::{self, Detail};
use super::{CommandTable, Fleet};
use crate::dr::{self, VERSIONS};
use crate::site::Site;

const STEPS: u64 = 6000;
const LANES: u64 = 3;

fn workload_is_sound(version: &str, seed: u64, rounds: usize) {
    let master = Site::plain(version);
    let replica = Site::replica_of(&master);
    let second = Site::replica_of(&master);
    let table = Arc::new(master.table());
    let compare = |what: &str| {
        compare::settle(&mut master.conn(), &table.caps);
        let what = format!("{version}, seed {seed}, {what}");
        dr::wait_same_digest(&[&master, &replica, &second], &what);
        dr::assert_same(&master, &replica, &table.caps, Detail::MasterAndReplica, &what);
        dr::assert_same(&replica, &second, &table.caps, Detail::Replicas, &what);
    };
    let fleet = Fleet::start(master.addr(), &table, seed, LANES);
    let coverage = fleet.run_rounds(rounds, STEPS, compare);
    assert_eq!(coverage.gaps(&table), Vec::<String>::new(), "{version}");
}

macro_rules! per_version {
    ($($name:ident $soak:ident $version:expr;)*) => { $(
        #[test]
        fn $name() {
            workload_is_sound($version, 1, 2);
        }

        #[test]
        #[ignore = "soak: ten seeds"]
        fn $soak() {
            for seed in 1..=10 {
                workload_is_sound($version, 1000 * seed, 10);
            }
        }
    )* };
}
per_version! {
    workload_is_sound_on_redis_6_0 soak_workload_is_sound_on_redis_6_0 "redis-6.0";
    workload_is_sound_on_redis_6_2 soak_workload_is_sound_on_redis_6_2 "redis-6.2";
    workload_is_sound_on_redis_7_0 soak_workload_is_sound_on_redis_7_0 "redis-7.0";
    workload_is_sound_on_redis_7_4 soak_workload_is_sound_on_redis_7_4 "redis-7.4";
    workload_is_sound_on_redis_8_0 soak_workload_is_sound_on_redis_8_0 "redis-8.0";
    workload_is_sound_on_valkey_8_1 soak_workload_is_sound_on_valkey_8_1 "valkey-8.1";
    workload_is_sound_on_valkey_9_1 soak_workload_is_sound_on_valkey_9_1 "valkey-9.1";
}

/// Natively only to a later version; what differs there is no fault of the module.
fn workload_is_sound_across(from: &str, to: &str, seed: u64) {
    let master = Site::plain(from);
    let replica = Site::plain(to);
    replica.follow(&master);
    let table = CommandTable::common(&master.table(), &replica.table());
    let table = Arc::new(table.without(crate::commands::DIFFERS_ACROSS_VERSIONS));
    let fleet = Fleet::start(master.addr(), &table, seed, LANES);
    fleet.run_steps(2 * STEPS);
    let coverage = fleet.stop_when_covered();
    compare::settle(&mut master.conn(), &table.caps);
    dr::wait_replica(&master, &replica);
    let what = format!("{from} to {to}, seed {seed}");
    dr::assert_same(&master, &replica, &table.caps, Detail::AcrossVersions, &what);
    assert_eq!(coverage.gaps(&table), Vec::<String>::new(), "{what}");
}

#[test]
fn workload_is_sound_across_versions() {
    workload_is_sound_across("redis-6.0", "redis-7.0", 1);
    workload_is_sound_across("redis-7.0", "redis-8.0", 2);
    workload_is_sound_across("redis-6.0", "valkey-9.1", 3);
}

/// A name that no server has, or a command that could be exercised, must leave the list.
#[test]
fn the_list_of_commands_not_exercised_is_current() {
    let mut known: Vec<String> = Vec::new();
    for version in VERSIONS {
        known.extend(Site::plain(version).table().writing().iter().map(|n| (*n).to_owned()));
    }
    for (name, reason) in NOT_EXERCISED {
        assert!(known.iter().any(|k| k == name), "no server lists {name} as writing");
        assert!(reason.len() > 10, "{name} needs a reason");
    }
}
