"""Write docs/settings.md from the settings class: ``python -m scripts.settings_page``."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo

from server.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """\
<!-- Written by `python -m scripts.settings_page` from server/settings: change it there. -->
# Settings

Pass settings to `scripts/serve`, `phi3v-server` or `python -m server` as flags or as environment
variables: `--max-model-len 8192` is `PHI3V_MAX_MODEL_LEN=8192`. Flags take precedence. Switches have two flags:
`--playground` and `--no-playground` (`PHI3V_PLAYGROUND=true` and `false`).
"""
SECTIONS = {
    "Model": "model revision lora lora_revision served_model_name dtype quantization device pipeline_parallel_size",
    "Engine": "max_model_len images_per_prompt max_num_seqs prefill_chunk max_output_tokens gpu_memory_utilization "
    "kv_cache_memory prefix_caching embedding_cache_memory prompt_lookup deterministic generation_config",
    "Network": "host port ssl_certfile ssl_keyfile allowed_origins allowed_hosts allow_image_hosts "
    "playground",
    "Callers": "api_key api_keys api_keys_file generated_key_file insecure requests_per_minute "
    "tokens_per_minute concurrent_requests entra_tenant entra_audience entra_roles entra_scopes "
    "entra_authority isolate_caches trust_priority",
    "Limits": "max_connections header_timeout body_timeout idle_timeout write_timeout max_body_mb "
    "max_bodies_mb max_messages max_images max_image_pixels image_timeout max_waiting "
    "max_waiting_tokens max_waiting_memory request_timeout",
    "Operation": "drain_timeout response_store response_store_memory response_store_seconds log_format log_level otlp_endpoint open_metrics",
}
NOTES = {
    "Model": "See [checkpoints](checkpoints.md), [fine-tuned models](fine-tuned.md) and [GPUs](gpu.md).",
    "Engine": "See [sizing](sizing.md).",
    "Network": "See [deployment](deployment.md#tls) and [security](security.md#without-a-key).",
    "Callers": "See [security](security.md).",
    "Limits": "What a request may cost. Each limit is enforced as soon as the cost is known, and the error "
    "names it.",
    "Operation": "See [operating](operating.md).",
}


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE}")


def page() -> str:
    """The page's Markdown; raises ValueError if the sections do not list each setting once."""
    listed = [name for names in SECTIONS.values() for name in names.split()]
    if missing := set(Settings.model_fields) ^ set(listed):
        raise ValueError(f"not in a section, or not a setting: {', '.join(sorted(missing))}")
    parts = [HEAD]
    for title, names in SECTIONS.items():
        rows = [_row(name, Settings.model_fields[name]) for name in names.split()]
        table = "\n".join(["| flag | default | what it sets |", "|---|---|---|", *rows])
        parts.append(f"## {title}\n\n{NOTES[title]}\n\n{table}\n")
    return "\n".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    flag = f"`--{name.replace('_', '-')}`"
    return f"| {flag} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | []:
            return "-"
        case bool(switch):
            return "on" if switch else "off"
        case value:
            return f"`{value}`"


if __name__ == "__main__":
    main()
