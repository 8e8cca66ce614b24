//! The flags about where adapters come from: what requests may name, where unknown names are looked
//! for, and how much may be fetched.

use crate::size::ByteSize;
use clap::Args;

/// Where adapters may come from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Adapters")]
pub struct SourceArgs {
    /// What /v1/load_lora_adapter may name: a directory or URI, or one that ends with /* for all that
    /// lies below, such as /srv/adapters/*, hf://acme/*, s3://bucket/adapters/*, https://host/*. Without
    /// any, requests may name every local directory and nothing else. May be given several times.
    #[arg(long, value_delimiter = ',', env = "WEFT_ADAPTER_SOURCE_ALLOW", value_name = "PATTERN")]
    pub adapter_source_allow: Vec<String>,
    /// Where a model is looked for that nobody loaded: acme/*=hf://acme/{name}. `*` stands for one part
    /// of a name, {name} for what it stood for, {model} for the whole name. What is not there is not
    /// asked for again for a minute. Names that no rule covers are never looked for. May be given
    /// several times; the first source that has the adapter gives it.
    #[arg(long, value_delimiter = ',', env = "WEFT_ADAPTER_RESOLVER", value_name = "NAMES=URI")]
    pub adapter_resolver: Vec<String>,
    /// Larger adapters are not fetched; known before anything is. Default: 2GiB.
    #[arg(long, env = "WEFT_ADAPTER_DOWNLOAD_MAX", value_name = "SIZE")]
    pub adapter_download_max: Option<ByteSize>,
}

/// `weft adapter pull`
#[derive(Args, Debug)]
#[command(after_help = "\
Prints the directory that holds the adapter. Repositories of the Hugging Face Hub are kept where
huggingface_hub keeps them ($HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub), others in
$WEFT_CACHE/adapters. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and AWS_…, GOOGLE_… and AZURE_… variables
mean what they mean elsewhere.")]
pub struct AdapterPullArgs {
    /// hf://org/name[@revision][/folder], s3://bucket/prefix, gs://…, az://… or https://host/folder/.
    pub uri: String,
    /// Larger adapters are not fetched. Default: 2GiB.
    #[arg(long, env = "WEFT_ADAPTER_DOWNLOAD_MAX", value_name = "SIZE")]
    pub adapter_download_max: Option<ByteSize>,
}
