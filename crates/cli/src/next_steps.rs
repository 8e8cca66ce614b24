//! What `weft` prints when it is asked for nothing.

use crate::known_models::DEMO_MODEL;

/// What could be next.
#[must_use]
pub fn next_steps() -> String {
    format!(
        "\
Weft serves one base model with many LoRA adapters, through the OpenAI API.

  weft serve --demo              try it: a base of {size} with five adapters, fetched on first use
  weft serve MODEL --adapter NAME=DIR
                                 your own: MODEL is a .gguf file or a Hugging Face directory,
                                 DIR holds what PEFT's save_pretrained() wrote
  weft check MODEL               will this machine and this model work?
  weft adapter inspect DIR       what is in this adapter?
  weft bench serve               how fast is a running server?

`weft --help` lists everything; `weft serve --help` explains each flag.
",
        size = DEMO_MODEL.size(),
    )
}
