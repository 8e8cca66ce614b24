//! `weft adapter merge`, `extract`, `quantize` and `convert`. In: flags. Out: a report that prints as
//! text or JSON. What is computed is `weft_transform`'s; here are names, progress and words.

use crate::args::adapter::{FloatChoice, StrategyChoice};
use crate::args::{ConvertArgs, ExtractArgs, MergeArgs, QuantizeArgs};
use crate::output::{print, print_json};
use crate::progress::count_bar;
use crate::serve::find_model;
use crate::size::ByteSize;
use crate::{device, text_side};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use weft_transform::combine::{CombineOptions, CombinedModule, combine};
use weft_transform::convert::{ConvertReport, Form, convert};
use weft_transform::extract::{ExtractOptions, ExtractReport, extract};
use weft_transform::merge::{MergeReport, merge};
use weft_transform::quantize::{QuantizeReport, quantize};
use weft_transform::{AdapterInput, Strategy, StrategyOptions};
use weft_types::Dtype;

/// Prompts of different kinds, for `quantize`.
const PROMPTS: [&str; 4] = [
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "SELECT name, count(*) FROM orders WHERE created_at >",
    "Dear customer, thank you for your message. We are sorry to hear that",
];

/// `weft adapter merge`
///
/// # Errors
/// A sentence about what does not fit.
pub fn merge_adapters(args: &MergeArgs) -> Result<()> {
    let adapters =
        args.adapters.iter().map(|given| adapter_input(given)).collect::<Result<Vec<_>>>()?;
    let options = StrategyOptions {
        strategy: match args.strategy {
            StrategyChoice::Linear => Strategy::Linear,
            StrategyChoice::Ties => Strategy::Ties,
            StrategyChoice::DareLinear => Strategy::DareLinear,
            StrategyChoice::DareTies => Strategy::DareTies,
        },
        density: args.density,
        seed: args.seed,
        lambda: args.lambda,
    };
    if args.to_adapter {
        let base = device::read_config(&find_model(Some(&args.base))?.path)?.spec;
        let combine_options = CombineOptions { rank: args.rank, dtype: dtype(args.dtype) };
        let options = (&options, &combine_options);
        let report = with_bar("merging", |progress| {
            combine(&adapters, &base, options, &args.out, progress)
        })?;
        return print_report(args.json, &report, |report| combined_text(report, &args.out));
    }
    let base = Path::new(&args.base);
    let report =
        with_bar("merging", |progress| merge(base, &adapters, &options, &args.out, progress))?;
    print_report(args.json, &report, |report| merged_text(report, &args.out))
}

/// `weft adapter extract`
///
/// # Errors
/// A sentence about what does not fit.
pub fn extract_adapter(args: &ExtractArgs) -> Result<()> {
    let options = ExtractOptions {
        rank: args.rank,
        dtype: dtype(args.dtype),
        with_embeddings: args.with_embeddings,
        allow_rest: args.allow_rest,
    };
    let report = with_bar("extracting", |progress| {
        extract(&args.base, &args.finetuned, &options, &args.out, progress)
    })?;
    print_report(args.json, &report, |report| extracted_text(report, &args.out))
}

/// `weft adapter quantize`
///
/// # Errors
/// A sentence about what does not fit.
pub fn quantize_adapter(args: &QuantizeArgs) -> Result<()> {
    let path = find_model(Some(&args.base))?.path;
    let tokenizer = text_side::load(&path)?.tokenizer;
    let model = device::load_for_tools(&path)?;
    let texts: Vec<&str> = match &args.prompt[..] {
        [] => PROMPTS.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let mut prompts = Vec::new();
    for text in texts {
        let tokens = tokenizer.encode(text, true)?;
        if tokens.is_empty() {
            bail!("--prompt {text:?} has no tokens");
        }
        prompts.push(tokens);
    }
    let report = quantize(&args.adapter, &model, &prompts)?;
    print_report(args.json, &report, quantized_text)
}

/// `weft adapter convert`
///
/// # Errors
/// A sentence about what is malformed or cannot be said.
pub fn convert_adapter(args: &ConvertArgs) -> Result<()> {
    let base = match &args.base {
        Some(given) => Some(device::read_config(&find_model(Some(given))?.path)?),
        None => None,
    };
    let report = convert(&args.input, base.as_ref(), &args.out)?;
    print_report(args.json, &report, |report| converted_text(report, &args.out))
}

/// `./sql@0.7`; a path that has an @ of its own is a path.
fn adapter_input(given: &str) -> Result<AdapterInput> {
    let scaled = given.rsplit_once('@').filter(|_| !Path::new(given).exists());
    match scaled {
        None => Ok(AdapterInput { path: PathBuf::from(given), scale: 1.0 }),
        Some((path, scale)) => {
            let scale = scale.parse().ok().filter(|scale: &f64| scale.is_finite());
            let scale = scale
                .with_context(|| format!("`{given}`: write a path and a scale as in ./sql@0.7"))?;
            Ok(AdapterInput { path: PathBuf::from(path), scale })
        }
    }
}

fn dtype(choice: FloatChoice) -> Dtype {
    match choice {
        FloatChoice::F32 => Dtype::F32,
        FloatChoice::F16 => Dtype::F16,
        FloatChoice::Bf16 => Dtype::Bf16,
    }
}

fn with_bar<T, E>(
    what: &'static str,
    work: impl FnOnce(&dyn Fn(usize, usize)) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let bar = count_bar(0, what);
    let result = work(&|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    result
}

fn print_report<R: Serialize>(
    as_json: bool,
    report: &R,
    text: impl FnOnce(&R) -> String,
) -> Result<()> {
    if as_json { print_json(report) } else { print(text(report)) }
}

/// Names in a column, numbers beside them.
fn table(header: [&str; 3], rows: impl Iterator<Item = (String, String, String)>) -> String {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0).max(header[0].len());
    let mut out = format!("{:width$}  {:>12}  {:>12}\n", header[0], header[1], header[2]);
    for (name, first, second) in rows {
        let _ = writeln!(out, "{name:width$}  {first:>12}  {second:>12}");
    }
    out
}

fn merged_text(report: &MergeReport, out: &Path) -> String {
    let rows = report.weights.iter().map(|weight| {
        (weight.module.clone(), format!("{:.3e}", weight.relative_change), String::new())
    });
    let mut text = table(["module", "change", ""], rows);
    let _ = writeln!(
        text,
        "\n{} weights changed; copied {}",
        report.weights.len(),
        report.copied.join(", ")
    );
    if !report.left_out.is_empty() {
        let _ = writeln!(text, "not copied: {}", report.left_out.join(", "));
    }
    let _ = writeln!(text, "serve it: weft serve {}", out.display());
    text
}

fn combined_text(report: &[CombinedModule], out: &Path) -> String {
    let rows = report.iter().map(|module| {
        (module.module.clone(), module.rank.to_string(), format!("{:.3e}", module.relative_error))
    });
    let mut text = table(["module", "rank", "error"], rows);
    let _ = writeln!(text, "\nserve it: weft serve MODEL --adapter NAME={}", out.display());
    text
}

fn extracted_text(report: &ExtractReport, out: &Path) -> String {
    let rows = report.modules.iter().map(|module| {
        let change = format!("{:.3e}", module.relative_change);
        (module.module.clone(), change, format!("{:.3e}", module.relative_error))
    });
    let mut text = table(["module", "change", "error"], rows);
    if report.num_unchanged > 0 {
        let _ = writeln!(text, "\n{} modules are the same in both", report.num_unchanged);
    }
    for rest in &report.rest {
        let _ = writeln!(text, "LEFT OUT  {} changed by {:.3e}", rest.tensor, rest.relative_change);
    }
    let _ = writeln!(text, "\nserve it: weft serve MODEL --adapter NAME={}", out.display());
    text
}

fn quantized_text(report: &QuantizeReport) -> String {
    let rows = report.modules.iter().map(|module| {
        (module.module.clone(), format!("{:.3e}", module.relative_error), String::new())
    });
    let mut text = table(["module", "error", ""], rows);
    let (bytes, int8) = (ByteSize(report.num_bytes as u64), ByteSize(report.num_int8_bytes as u64));
    let _ = writeln!(text, "\nweights {bytes}, in int8 {int8}");
    for (index, prompt) in report.prompts.iter().enumerate() {
        let _ = writeln!(
            text,
            "prompt {}: {} tokens, logits differ by {:.1e} ({:.1e} of what the adapter changes), {} of \
             the most likely tokens are others",
            index + 1,
            prompt.num_tokens,
            prompt.relative_error,
            prompt.relative_to_effect,
            prompt.num_other_tokens
        );
    }
    text.push_str("serve it so: weft serve MODEL --adapter NAME=DIR --adapter-dtype int8\n");
    text
}

fn converted_text(report: &ConvertReport, out: &Path) -> String {
    let name = |form: Form| match form {
        Form::Peft => "PEFT",
        Form::PeftPickle => "PEFT with a pickle",
        Form::Nemo => "NeMo",
        Form::Gguf => "GGUF",
    };
    let mut text = format!(
        "{} to {}: {} tensors, {} in {}\n",
        name(report.from),
        name(report.to),
        report.num_tensors,
        ByteSize(report.num_bytes as u64),
        out.display()
    );
    if !report.is_checked {
        text.push_str(
            "not checked against a base; `weft adapter inspect DIR --base MODEL` does that\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_at_sign() {
        let input = |given: &str| adapter_input(given).map(|input| (input.path, input.scale)).ok();
        assert_eq!(input("./sql"), Some(("./sql".into(), 1.0)));
        assert_eq!(input("./sql@-0.5"), Some(("./sql".into(), -0.5)));
        assert_eq!(input("./a@b@2"), Some(("./a@b".into(), 2.0)));
        assert_eq!(input("./sql@"), None);
        assert_eq!(input("./sql@inf"), None);
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("sql@v1");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(input(odd.to_str().unwrap()), Some((odd.clone(), 1.0)));
    }

    #[test]
    fn left_out_tensors_are_shouted() {
        let report = ExtractReport {
            modules: Vec::new(),
            num_unchanged: 2,
            rest: vec![weft_transform::extract::RestTensor {
                tensor: "model.norm.weight".into(),
                relative_change: 0.25,
            }],
        };
        let text = extracted_text(&report, Path::new("out"));
        assert!(
            text.contains("LEFT OUT  model.norm.weight") && text.contains("2 modules"),
            "{text}"
        );
    }
}
