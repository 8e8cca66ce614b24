//! `weft adapter`: flags of the tools for adapters.

use crate::args::sources::AdapterPullArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `weft adapter`
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Show what an adapter is, and with `--base` whether that base can serve it and what it changes.
    Inspect(InspectArgs),
    /// Merge adapters into their base, or with `--to-adapter` into one adapter.
    Merge(MergeArgs),
    /// Make a LoRA of what a fine-tuned model changes in its base.
    Extract(ExtractArgs),
    /// Say what serving an adapter in int8 costs: the error of its weights and of the logits.
    Quantize(QuantizeArgs),
    /// Convert adapter_model.bin, NeMo's archives and GGUF adapters to PEFT, and PEFT to GGUF.
    Convert(ConvertArgs),
    /// List a running server's adapters: where each is, how large, how often used.
    Ls(AdapterLsArgs),
    /// Fetch an adapter into the cache and verify it.
    Pull(AdapterPullArgs),
}

/// `weft adapter ls`
#[derive(Args, Debug)]
pub struct AdapterLsArgs {
    /// The server; plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Print what the server says, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft adapter inspect`
#[derive(Args, Debug)]
#[command(after_help = "\
Lists all reasons against serving the adapter at once, where `weft serve` stops at the first, and ends
with status 1 if there is one. With --base, the size of every module's update follows: its norm, and its
effective rank, the number of directions that it really uses (far below the rank: a smaller one would do).

  weft adapter inspect ./sql
  weft adapter inspect ./sql --base model.gguf --json")]
pub struct InspectArgs {
    /// A PEFT directory: adapter_config.json and adapter_model.safetensors.
    pub dir: PathBuf,
    /// The base to check against: a GGUF file, a Hugging Face directory, or a known name.
    #[arg(long, alias = "model")]
    pub base: Option<String>,
    /// Ranks above this are refused.
    #[arg(long, default_value_t = 512, env = "WEFT_MAX_LORA_RANK")]
    pub max_lora_rank: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft adapter merge`
#[derive(Args, Debug)]
#[command(after_help = "\
Without --to-adapter, OUT becomes a model's directory as the base's is: same files, same element types,
loadable by transformers and by `weft serve`. The base must be an unquantized Hugging Face directory.
With --to-adapter, OUT becomes a PEFT directory. A linear merge is exact: ranks add up, unless --rank is
given. TIES and DARE give updates of full rank, which are approximated by truncated SVD; the error of each
module is shown.

Strategies: linear is the sum of all updates, each times its scale. ties (Yadav 2023) keeps the largest
entries of each, elects a sign per entry and takes the mean of those that have it. dare-linear and dare-ties
(Yu 2023) drop entries at random instead and scale up the rest.

  weft adapter merge ./sql --base ./Llama-3.2-1B --out ./Llama-3.2-1B-sql
  weft adapter merge ./sql@0.7 ./chat@0.5 --base ./Llama-3.2-1B --out ./both --to-adapter
  weft adapter merge ./a ./b --base ./m --out ./ab --strategy ties --density 0.2")]
pub struct MergeArgs {
    /// PEFT directories, each perhaps with a scale: ./sql@0.7
    #[arg(required = true, value_name = "ADAPTER[@SCALE]")]
    pub adapters: Vec<String>,
    /// The base: a Hugging Face directory; with --to-adapter also a GGUF file or a known name.
    #[arg(long)]
    pub base: String,
    /// Where to write; must not exist.
    #[arg(long)]
    pub out: PathBuf,
    /// Make one adapter of them, not a model.
    #[arg(long)]
    pub to_adapter: bool,
    /// How several updates of one weight become one.
    #[arg(long, value_enum, default_value_t = StrategyChoice::Linear)]
    pub strategy: StrategyChoice,
    /// Share of entries that ties and dare keep, above 0 and at most 1.
    #[arg(long, default_value_t = 1.0)]
    pub density: f64,
    /// Of the entries that dare drops.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What the merged update is multiplied with.
    #[arg(long, default_value_t = 1.0)]
    pub lambda: f64,
    /// With --to-adapter: the rank of every module. [default: the sum of the adapters' ranks]
    #[arg(long, requires = "to_adapter")]
    pub rank: Option<usize>,
    /// With --to-adapter: the element type to write.
    #[arg(long, value_enum, default_value_t = FloatChoice::F32, requires = "to_adapter")]
    pub dtype: FloatChoice,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "explained in the help above")]
pub enum StrategyChoice {
    Linear,
    Ties,
    DareLinear,
    DareTies,
}

/// A float type of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the field's")]
pub enum FloatChoice {
    F32,
    F16,
    Bf16,
}

/// `weft adapter extract`
#[derive(Args, Debug)]
#[command(after_help = "\
Both models must be unquantized Hugging Face directories with the same tensors. The difference of each
linear is approximated by truncated SVD; its error, relative to the difference, is shown per module: 0 is
exact, and where it is near 1 the rank is far too small. Differences that a LoRA cannot carry (norms,
biases) are an error, unless --allow-rest leaves them out; then they are listed.

  weft adapter extract --base ./Llama-3.2-1B --finetuned ./my-finetune --rank 64 --out ./my-lora")]
pub struct ExtractArgs {
    /// The base: a Hugging Face directory.
    #[arg(long)]
    pub base: PathBuf,
    /// The fine-tuned model: a Hugging Face directory.
    #[arg(long)]
    pub finetuned: PathBuf,
    /// The rank of every module.
    #[arg(long)]
    pub rank: usize,
    /// Where to write; must not exist.
    #[arg(long)]
    pub out: PathBuf,
    /// The element type to write.
    #[arg(long, value_enum, default_value_t = FloatChoice::F32)]
    pub dtype: FloatChoice,
    /// Also approximate what changed in embedding and output head, where they are two.
    #[arg(long)]
    pub with_embeddings: bool,
    /// Leave out, and list, what a LoRA cannot carry.
    #[arg(long)]
    pub allow_rest: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft adapter quantize`
#[derive(Args, Debug)]
#[command(after_help = "\
Writes nothing: int8 is how adapters are served (`weft serve --adapter-dtype int8`), not a form in which
PEFT keeps them. The logits are compared on the CPU, on prompts that are built in, or on yours.

  weft adapter quantize ./sql --base model.gguf --prompt 'SELECT name FROM'")]
pub struct QuantizeArgs {
    /// A PEFT directory.
    pub adapter: PathBuf,
    /// The base: a GGUF file, a Hugging Face directory, or a known name.
    #[arg(long)]
    pub base: String,
    /// Compare the logits on these prompts. [default: some that are built in]
    #[arg(long)]
    pub prompt: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weft adapter convert`
#[derive(Args, Debug)]
#[command(after_help = "\
IN is one of
  a PEFT directory with adapter_model.bin   its pickle is read without being executed
  a .nemo archive, or one unpacked          LoRA of NeMo, canonical (q, k and v of their own)
  a GGUF adapter of llama.cpp               general.type \"adapter\"
  a PEFT directory with safetensors         if OUT ends with .gguf
and OUT a PEFT directory, or a GGUF adapter if its name ends so.

  weft adapter convert ./old ./new
  weft adapter convert lora.gguf ./lora --base ./Llama-3.2-1B
  weft adapter convert ./lora lora.gguf --base ./Llama-3.2-1B")]
pub struct ConvertArgs {
    /// What to convert.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Where to write; must not exist.
    pub out: PathBuf,
    /// The base: a GGUF file, a Hugging Face directory, or a known name. Needed for GGUF; with it, the
    /// result is checked.
    #[arg(long)]
    pub base: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
