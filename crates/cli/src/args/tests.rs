//! Command lines as people write them, ours and vLLM's.

use super::serve::{
    AdapterDtypeChoice, CpuActivationsChoice, CpuIsaChoice, DeviceChoice, DtypeChoice,
    KvCacheDtype, PinThreads, QuantizeChoice, WeightCacheChoice,
};
use super::*;
use crate::size::ByteSize;
use clap::CommandFactory;

fn serve(flags: &str) -> ServeArgs {
    ServeArgs::parse_flags(flags.split_whitespace()).unwrap()
}

fn refused(flags: &str) -> String {
    ServeArgs::parse_flags(flags.split_whitespace()).unwrap_err().to_string()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_model_is_enough_and_defaults_are_local() {
    let args = serve("model.gguf");
    assert_eq!(args.model.as_deref(), Some("model.gguf"));
    assert_eq!((args.host.to_string().as_str(), args.port), ("127.0.0.1", 8000));
    assert!(!args.allow_runtime_adapters);
    assert_eq!(args.adapters.max_lora_rank, 512);
    assert_eq!(args.adapters.adapter_dtype, AdapterDtypeChoice::Auto);
    assert_eq!(args.adapters.adapter_host_memory, None);
}

#[test]
fn every_flag_of_serve_is_read_with_and_without_equals() {
    let args = serve(
        "m --adapter a=x --adapter=b=y --adapter-dir=d --host 0.0.0.0 --port=9 --device cpu \
         --memory 2GiB --max-model-len=128 --max-num-seqs 3 --max-num-batched-tokens 64 \
         --max-lora-rank 32 --served-model-name n1 --served-model-name n2 --allow-runtime-adapters \
         --quantize int8 --kv-cache-dtype=bf16 --threads 2 --no-prefix-caching --max-queue 5 \
         --adapter-host-memory 8GiB --adapter-dtype=int8 --pin a --pin b,c --dtype=bf16 \
         --cpu-activations int8 --pin-threads on --cpu-isa avx2",
    );
    assert_eq!(args.adapters.adapter, ["a=x", "b=y"]);
    assert_eq!(args.adapters.adapter_dir, Some("d".into()));
    assert_eq!(args.adapters.adapter_host_memory, Some(ByteSize(8 << 30)));
    assert_eq!(args.adapters.adapter_dtype, AdapterDtypeChoice::Int8);
    assert_eq!(args.adapters.pin, ["a", "b", "c"]);
    assert_eq!(args.engine.device, DeviceChoice::Cpu);
    assert_eq!(args.engine.memory, Some(ByteSize(2 << 30)));
    assert_eq!((args.engine.max_model_len, args.engine.max_num_seqs), (Some(128), 3));
    assert_eq!(args.engine.quantize, QuantizeChoice::Int8);
    assert_eq!(args.engine.kv_cache_dtype, KvCacheDtype::Bf16);
    assert_eq!(args.engine.dtype, DtypeChoice::Bf16);
    assert_eq!(args.engine.cpu_activations, Some(CpuActivationsChoice::Int8));
    assert_eq!(serve("m").engine.cpu_activations, None);
    assert_eq!(serve("m --kv-cache-dtype int8").engine.kv_cache_dtype, KvCacheDtype::Int8);
    assert_eq!(args.engine.pin_threads, PinThreads::On);
    assert_eq!(args.engine.cpu_isa, CpuIsaChoice::Avx2);
    assert!(args.engine.no_prefix_caching && args.allow_runtime_adapters);
    assert_eq!((args.served_model_name.len(), args.max_queue, args.engine.threads), (2, 5, 2));
}

#[test]
fn packed_weights_are_kept_unless_switched_off_or_sent_elsewhere() {
    assert_eq!(serve("m").engine.weight_cache, WeightCacheChoice::Auto);
    assert_eq!(serve("m --weight-cache off").engine.weight_cache, WeightCacheChoice::Off);
    let dir = WeightCacheChoice::Dir("./off".into());
    assert_eq!(serve("m --weight-cache=./off").engine.weight_cache, dir);
}

#[test]
fn vllms_spellings_are_accepted() {
    let args = serve(
        "m --enable-lora --lora-modules a=x b=y --max-loras 4 --max-cpu-loras=8 --max-lora-rank 64 \
         --enable-prefix-caching --dtype half --kv-cache-dtype fp8_e4m3",
    );
    assert_eq!(args.engine.dtype, DtypeChoice::F16);
    assert_eq!(args.engine.kv_cache_dtype, KvCacheDtype::Fp8);
    assert_eq!(args.adapters.lora_modules, ["a=x", "b=y"]);
    assert!(serve("m --no-enable-prefix-caching").engine.no_prefix_caching);
}

#[test]
fn demo_takes_no_model_and_nothing_is_refused_with_a_hint() {
    assert!(serve("--demo --demo-dir d").demo);
    assert!(refused("").contains("MODEL"));
    assert!(refused("m --demo").contains("cannot be used with"));
    assert!(refused("m --memory lots").contains("512MiB"));
    assert!(refused("m --lora-modules").contains("--lora-modules"));
}

#[test]
fn bench_reads_its_distributions() {
    let cli = Cli::try_parse_from(
        "weft bench serve --adapters a,b --distribution power:0.3 --rate 2 --cv 4".split(' '),
    );
    let Some(Command::Bench(bench)) = cli.unwrap().command else { panic!("not bench") };
    let BenchCommand::Serve(args) = *bench else { panic!("not serve") };
    assert_eq!(args.adapters, ["a", "b"]);
    assert_eq!((args.load.rate, args.load.cv), (Some(2.0), 4.0));
    let many = "weft bench serve --user acme --adapter-prefix a- --num-adapters 1024 \
                --distribution power:0.3";
    let cli = Cli::try_parse_from(many.split_whitespace());
    let Some(Command::Bench(bench)) = cli.unwrap().command else { panic!("not bench") };
    let BenchCommand::Serve(args) = *bench else { panic!("not serve") };
    assert_eq!((args.user.as_deref(), args.num_adapters), (Some("acme"), Some(1024)));
    assert_eq!(args.load.distribution, weft_bench::Popularity::Power(0.3));
    let both = "weft bench serve --rate 2 --concurrency 3";
    assert!(Cli::try_parse_from(both.split(' ')).is_err());
}
