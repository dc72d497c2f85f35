use super::*;
use serde_json::json;

fn read(value: Value) -> TrainConfig {
    TrainConfig::from_value(value).expect("a valid table")
}

fn refused(value: Value) -> String {
    TrainConfig::from_value(value).expect_err("refused").to_string()
}

#[test]
fn an_empty_table_is_the_defaults_and_they_are_valid() {
    assert_eq!(read(json!({})), TrainConfig::default());
}

#[test]
fn a_table_survives_being_written_and_read() {
    let config = TrainConfig {
        max_grad_norm: None,
        save_total_limit: None,
        packing: Packing::Concat,
        lora: Some(LoraTable { target_modules: ModuleNames::Many(vec!["q_proj".into()]), ..LoraTable::default() }),
        ..TrainConfig::default()
    };
    assert_eq!(read(serde_json::to_value(&config).expect("plain data")), config);
}

#[test]
fn every_alias_reaches_the_key_it_stands_for() {
    for (alias, name) in ALIASES {
        let value = match *name {
            "learning_rate" | "lora.dropout" => json!(0.25),
            "lr_scheduler" => json!("linear"),
            "decay_steps" | "decay_ratio" | "lr_timescale" => continue,
            "packing" => json!("concat"),
            "load_best" | "activation_checkpointing" => json!(true),
            "gradient_dtype" => json!("bf16"),
            "lora.target_modules" => json!(["q_proj"]),
            _ => json!(4),
        };
        let at = |path: &str| match path.split_once('.') {
            Some((table, key)) => json!({table: {key: value}}),
            None => json!({path: value}),
        };
        let by_alias = read(at(alias));
        assert_eq!(by_alias, read(at(name)), "{alias}");
        assert_ne!(by_alias, TrainConfig::default(), "{alias}");
    }
}

#[test]
fn schedules_are_written_as_other_trainers_write_them() {
    let wsd = read(json!({"lr_scheduler_type": "warmup_stable_decay", "num_decay_steps": 40, "decay_type": "1-sqrt"}));
    assert_eq!(wsd, read(json!({"lr_scheduler": "wsd", "decay_steps": 40, "decay_type": "1-sqrt"})));
    assert_eq!(wsd.decay_type, Some(DecayType::OneMinusSqrt));
    let infinite = read(json!({"lr_scheduler": "infinite_cosine", "anneal_ratio": 0.2, "min_lr_ratio": 0.1}));
    assert_eq!((infinite.lr_scheduler, infinite.decay_ratio), (Scheduler::InfiniteCosine, Some(0.2)));
    let inverse = read(json!({"lr_scheduler": "inverse_sqrt", "timescale": 9}));
    assert_eq!((inverse.lr_scheduler, inverse.lr_timescale), (Scheduler::InverseSqrt, Some(9)));
}

#[test]
fn two_spellings_of_one_key_are_refused_naming_both() {
    assert_eq!(
        refused(json!({"max_length": 10, "cutoff_len": 10})),
        "`train.max_length` and `train.cutoff_len` mean the same, and both are given"
    );
    assert_eq!(
        refused(json!({"lora_r": 4, "lora": {"rank": 4}})),
        "`train.lora_r` and `train.lora.rank` mean the same, and both are given"
    );
}

#[test]
fn batch_sizes_that_count_per_device_are_asked_about() {
    assert_eq!(
        refused(json!({"per_device_train_batch_size": 4})),
        "`train.per_device_train_batch_size` counts per device; write `batch_size`, the sequences per optimiser step \
         all told"
    );
}

#[test]
fn unknown_keys_are_refused() {
    assert!(refused(json!({"learning_rat": 1.0})).contains("unknown field `learning_rat`"));
    assert!(refused(json!({"lora": {"ranks": 1}})).contains("unknown field `ranks`"));
}

#[test]
fn ranges_and_rules_between_keys_are_checked_by_name() {
    for (table, message) in [
        (json!({"learning_rate": 0.0}), "`train.learning_rate` is 0, expected a number above 0"),
        (json!({"warmup_ratio": 1.5}), "`train.warmup_ratio` is 1.5, expected a number from 0 to 1"),
        (json!({"batch_size": 0}), "`train.batch_size` is 0, expected a whole number from 1"),
        (json!({"adam_beta2": 1.0}), "`train.adam_beta2` is 1, expected a number from 0 to below 1"),
        (json!({"max_grad_norm": 0.0}), "`train.max_grad_norm` is 0, expected a number above 0, or false for none"),
        (
            json!({"warmup_ratio": 0.1, "warmup_steps": 3}),
            "`train.warmup_ratio` and `train.warmup_steps` exclude each other, and both are given",
        ),
        (
            json!({"warmup_steps": 30, "max_steps": 20}),
            "`train.warmup_steps` is 30, expected less than the 20 steps of the training",
        ),
        (
            json!({"decay_steps": 30}),
            "`train.lr_scheduler` is cosine, expected \"wsd\", \"infinite_cosine\" or \"infinite_inverse_sqrt\", because \
             `train.decay_steps` is given",
        ),
        (
            json!({"lr_scheduler": "infinite_cosine"}),
            "`train.min_lr_ratio` is 0, expected a number above 0: an exponential decay never gets to 0",
        ),
        (
            json!({"lr_scheduler": "infinite_inv_sqrt", "min_lr_ratio": 0.1, "schedule_start": "constant", "warmup_steps": 1}),
            "`train.schedule_start` and `train.warmup_steps` exclude each other, and both are given",
        ),
        (
            json!({"batch_size": 10, "gradient_accumulation_steps": 4}),
            "`train.gradient_accumulation_steps` is 4, which does not divide `train.batch_size`, which is 10",
        ),
        (
            json!({"lora": {"rank": 0}}),
            "`train.lora`: lora setting `rank` is 0, expected a whole number from 1 to 65536",
        ),
    ] {
        assert_eq!(refused(table), message);
    }
}

#[test]
fn packing_is_a_switch_or_a_name() {
    for (written, packing) in [
        (json!(true), Packing::BestFit),
        (json!("bfd"), Packing::BestFit),
        (json!("best_fit"), Packing::BestFit),
        (json!(false), Packing::None),
        (json!("none"), Packing::None),
        (json!("wrapped"), Packing::Concat),
    ] {
        assert_eq!(read(json!({"packing": written})).packing, packing);
    }
    assert!(refused(json!({"packing": "tight"})).contains("expected true, false, \"none\", \"best_fit\""));
}

#[test]
fn clipping_and_the_limit_of_checkpoints_can_be_switched_off() {
    let config = read(json!({"max_grad_norm": false, "save_total_limit": false}));
    assert_eq!((config.max_grad_norm, config.save_total_limit), (None, None));
    assert!(refused(json!({"max_grad_norm": true})).contains("expected a number, or false for none"));
}

#[test]
fn steps_follow_from_epochs_unless_given() {
    let config = TrainConfig { epochs: 2.5, ..TrainConfig::default() };
    assert_eq!(config.total_steps(10), 25);
    assert_eq!(TrainConfig { max_steps: Some(7), ..config.clone() }.total_steps(10), 7);
    assert_eq!(config.resolved_warmup_steps(100), 3);
    assert_eq!(TrainConfig { warmup_steps: Some(0), ..config }.resolved_warmup_steps(100), 0);
}

#[test]
fn alpha_is_twice_the_rank_unless_given() {
    assert_eq!(LoraTable { rank: 8, ..LoraTable::default() }.to_model().alpha, 16.0);
    assert_eq!(LoraTable { alpha: Some(8.0), ..LoraTable::default() }.to_model().alpha, 8.0);
}
