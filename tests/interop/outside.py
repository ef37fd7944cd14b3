"""Run by `python -I` where cocomix cannot be imported: everything an outsider does with an export, as one JSON line.

python -I outside.py EXPORT RESULT TEXT
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class NoCoCoMix(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name.split(".")[0] == "cocomix":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoCoCoMix())

import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

torch.set_num_threads(1)
export, result, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
prompt = tokenizer(text, return_tensors="pt")
greedy = {"max_new_tokens": 4, "do_sample": False}
cached = model.generate(**prompt, **greedy, return_dict_in_generate=True)
edit = sys.modules[type(model).__module__].ConceptEdit(3, "add", 50.0)
with torch.no_grad():
    logits, steered = model(**prompt).logits, model(**prompt, concept_edits=[edit]).logits
model.save_pretrained(Path(result).with_name("saved_again"))
again = AutoModelForCausalLM.from_pretrained(Path(result).with_name("saved_again"), trust_remote_code=True)
with torch.no_grad():
    logits_again = again(**prompt).logits
pipe = pipeline("text-generation", model=export, trust_remote_code=True)
save_file({"logits": logits, "steered": steered, "again": logits_again, "ids": cached.sequences}, result)
said = {
    "cocomix": [name for name in sys.modules if name.split(".")[0] == "cocomix"],
    "cache": type(cached.past_key_values).__name__,
    "without_cache": model.generate(**prompt, **greedy, use_cache=False).tolist(),
    "pipeline": pipe(text, **greedy)[0]["generated_text"],
}
harness = HFLM(pretrained=export, trust_remote_code=True, batch_size=1, device="cpu")
asked = Instance("loglikelihood", doc={}, arguments=(text, " list"), idx=0)
said["log_likelihood"] = harness.loglikelihood([asked], disable_tqdm=True)[0][0]
sys.stdout.write(json.dumps(said))
