"""Train a small Llama language model on the Python standard library's own sources.

    python train.py --out models/stdlib-llama

Everything that lies beside this file is written by this one script: the tokenizer, the weights, the held-out text and
the numbers in training.json.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import platform
import sysconfig
import time
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
# encodings/ is nearly all character tables; the other names are not part of the library's own source tree.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_PERCENT = 3
WARMUP = 0.02  # share of the schedule
VOCAB = 4096
SHAPE: dict[str, int] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}
EXCERPT_CHARACTERS, EXCERPT_CHARACTERS_PER_FILE = 80_000, 8_000


def read_corpus(stdlib: Path) -> dict[str, str]:
    """Every distinct UTF-8 source file of the library, by its path inside the library."""
    texts: dict[str, str] = {}
    seen: set[bytes] = set()
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib)
        if SKIPPED_FOLDERS.intersection(name.parts) or any(part.startswith(SKIPPED_PREFIXES) for part in name.parts):
            continue
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        try:
            text = data.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:  # a few test files are in other encodings, or broken on purpose
            continue
        if text.strip() and digest not in seen:
            seen.add(digest)
            texts[name.as_posix()] = text
    if not texts:
        raise SystemExit(f"no Python sources under {stdlib}")
    return texts


def name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def held_out_excerpt(texts: dict[str, str]) -> tuple[str, list[str]]:
    """The heads of held-out files, cut at a line's end; a file with a copyright notice of its own is passed over."""
    excerpt = ""
    names: list[str] = []
    for name in sorted(texts, key=lambda name: name_hash("excerpt " + name)):
        if len(excerpt) < EXCERPT_CHARACTERS and "copyright" not in texts[name].lower():
            excerpt += texts[name][:EXCERPT_CHARACTERS_PER_FILE].rpartition("\n")[0] + "\n"
            names.append(name)
    return excerpt, names


def train_tokenizer(texts: list[str], context: int, out: Path) -> Tokenizer:
    """A byte-level BPE tokenizer, saved in the form that AutoTokenizer reads. It puts <s> before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[BOS, EOS], initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    write_json(out / "tokenizer_config.json", {**settings, "model_max_length": context})
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[torch.Tensor]:
    """One tensor a file: <s>, the text, </s>."""
    return [torch.tensor([*encoding.ids, EOS_ID], dtype=torch.int32) for encoding in tokenizer.encode_batch(texts)]


def epoch_windows(files: list[torch.Tensor], seq_len: int, generator: torch.Generator) -> torch.Tensor:
    """One pass over the files in a fresh order, cut at a fresh offset into shuffled rows of seq_len + 1 tokens."""
    order = torch.randperm(len(files), generator=generator).tolist()
    stream = torch.cat([files[i] for i in order])
    offset = int(torch.randint(seq_len, (1,), generator=generator))
    rows = stream[offset:].unfold(0, seq_len + 1, seq_len)
    return rows[torch.randperm(len(rows), generator=generator)]


def window_loss(model: LlamaForCausalLM, window: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: torch.Tensor, seq_len: int, text_bytes: int) -> dict[str, float | int]:
    """The loss over a token stream, in windows of seq_len predictions that do not see each other."""
    full = (len(stream) - 1) // seq_len
    batches = [*stream[: full * seq_len + 1].unfold(0, seq_len + 1, seq_len).split(16), stream[None, full * seq_len :]]
    nats = sum(
        window_loss(model, batch.to(model.device).long(), "sum").item() for batch in batches if batch.shape[1] > 1
    )
    loss, bits = nats / (len(stream) - 1), nats / math.log(2) / text_bytes
    measured = {"loss": round(loss, 5), "perplexity": round(math.exp(loss), 4), "bits_per_byte": round(bits, 5)}
    return {"tokens": len(stream) - 1, "bytes": text_bytes, **measured}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write the model to")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")), help="the library's sources")
    parser.add_argument("--corpus-name", default=f"CPython {platform.python_version()}", help="for training.json")
    parser.add_argument("--seq-len", type=int, default=1024, help="training window; also the model's max_position")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--max-seconds", type=float, help="shorten the schedule so that training ends by then")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    started = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    corpus = read_corpus(args.stdlib)
    held_out = {name: text for name, text in corpus.items() if name_hash(name) % 100 < HELD_OUT_PERCENT}
    train_texts = [text for name, text in corpus.items() if name not in held_out]
    held_out_bytes = sum(len(text.encode()) for text in held_out.values())
    tokenizer = train_tokenizer(train_texts, args.seq_len, args.out)
    files = encode(tokenizer, train_texts)
    held_out_stream = torch.cat(encode(tokenizer, list(held_out.values())))
    excerpt, excerpt_names = held_out_excerpt(held_out)
    (args.out / "heldout.txt").write_text(excerpt, encoding="utf-8", newline="\n")
    train_tokens = sum(map(len, files))
    print(f"{len(files)} files, {train_tokens} tokens; held out {len(held_out)} files, {len(held_out_stream)} tokens")

    ids = {"vocab_size": VOCAB, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "tie_word_embeddings": True}
    config = LlamaConfig.from_dict(SHAPE | HEADS | ids | {"max_position_embeddings": args.seq_len})
    with device:
        model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    loss_of = torch.compile(window_loss, dynamic=False) if args.compile else window_loss

    rows = max(1, args.batch_tokens // args.seq_len)
    steps_per_epoch = train_tokens // args.seq_len // rows - 1  # the random offset can cost a row
    total_steps = args.epochs * steps_per_epoch
    best: dict[str, float | int] = {"held_out_loss": math.inf}
    best_weights: dict[str, torch.Tensor] = {}
    history: list[dict[str, float | int]] = []
    with autocast:  # compiling is not part of the schedule, nor of the training time
        loss_of(model, torch.zeros(rows, args.seq_len + 1, dtype=torch.long, device=device)).backward()
    model.zero_grad(set_to_none=True)
    step, progress, training_started = 0, 0.0, time.monotonic()
    while progress < 1:
        losses: list[torch.Tensor] = []
        for window in epoch_windows(files, args.seq_len, generator).split(rows)[:steps_per_epoch]:
            elapsed = time.monotonic() - training_started
            progress = max(step / total_steps, elapsed / args.max_seconds if args.max_seconds else 0.0)
            if progress >= 1:
                break
            cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = args.lr * cosine * min(1.0, (progress + 1 / total_steps) / WARMUP)
            with autocast:
                loss = loss_of(model, window.to(device, non_blocking=True).long())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            step += 1
        if not losses:
            break
        with autocast:
            held_out_loss = evaluate(model, held_out_stream, args.seq_len, held_out_bytes)["loss"]
        now = {"step": step, "train_loss": round(torch.stack(losses).mean().item(), 5), "held_out_loss": held_out_loss}
        history.append({**now, "seconds": round(time.monotonic() - training_started, 1)})
        print(json.dumps(history[-1]), flush=True)
        if held_out_loss < best["held_out_loss"]:
            best, best_weights = now, {name: weight.clone() for name, weight in model.state_dict().items()}
    training_seconds = time.monotonic() - training_started

    model.load_state_dict(best_weights)
    model.bfloat16().save_pretrained(args.out)
    model.float()  # the reported numbers are those of the saved bfloat16 weights
    excerpt_ids = AutoTokenizer.from_pretrained(args.out)(excerpt)["input_ids"]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "corpus": args.corpus_name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)},
        "settings": {key: value for key, value in vars(args).items() if not isinstance(value, Path)},
        "parameters": model.num_parameters(),
        "train_files": len(files),
        "train_tokens_per_epoch": train_tokens,
        "steps": step,
        "tokens_seen": step * rows * args.seq_len,
        "best_step": best["step"],
        "train_loss": best["train_loss"],
        "held_out": evaluate(model, held_out_stream, args.seq_len, held_out_bytes),
        "heldout_txt": evaluate(model, torch.tensor(excerpt_ids), args.seq_len, len(excerpt.encode())),
        "heldout_txt_files": excerpt_names,
        "training_seconds": round(training_seconds, 1),
        "total_seconds": round(time.monotonic() - started, 1),
        "history": history,
    }
    write_json(args.out / "training.json", report)
    print(json.dumps({"held_out": report["held_out"], "heldout_txt": report["heldout_txt"]}))


if __name__ == "__main__":
    main()
