//! Random operations and reopenings against a simple model, on the machine's own file system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::sync::Arc;

use proptest::prelude::*;
use redisdr::store::{Fs, RealFs};
use store_support::drive::{Run, Step};

fn sizes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let value = prop_oneof![8 => 0usize..200, 2 => 200usize..3000, 1 => 3000usize..40_000];
    prop::collection::vec(prop::collection::vec(value, 1..5), 1..8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => sizes().prop_map(Step::Append),
        2 => Just(Step::Sync),
        2 => Just(Step::Begin(0)),
        1 => (1u64..100_000).prop_map(Step::Begin),
        2 => (0u64..1001).prop_map(Step::Cut),
        2 => (0u64..1001).prop_map(Step::Clean),
        1 => (0u64..100_000).prop_map(Step::CleanBytes),
        1 => (0u64..1000).prop_map(Step::Reset),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_does_what_its_model_does(
        steps in prop::collection::vec(step(), 1..30),
        segment_size in 1000u64..50_000,
        switching in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let mut run = Run::new(fs, dir.path(), segment_size);
        run.switching = switching;
        run.open().unwrap();
        for step in &steps {
            let (result, _) = run.step(step);
            result.unwrap_or_else(|e| panic!("{step:?}: {e}"));
            run.check();
        }
        run.step(&Step::Reopen).0.unwrap();
        run.check();
    }
}
