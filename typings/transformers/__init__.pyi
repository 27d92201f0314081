# The names of transformers that are used here, from where they are defined. Its own __init__ names some 400 models,
# which pyright takes twice as long to read as all the rest.
from transformers import utils as utils
from transformers.generation.configuration_utils import (
    ContinuousBatchingConfig as ContinuousBatchingConfig,
    GenerationConfig as GenerationConfig,
)
from transformers.generation.logits_process import (
    LogitsProcessor as LogitsProcessor,
    LogitsProcessorList as LogitsProcessorList,
    TemperatureLogitsWarper as TemperatureLogitsWarper,
    TopKLogitsWarper as TopKLogitsWarper,
    TopPLogitsWarper as TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import (
    StoppingCriteria as StoppingCriteria,
    StoppingCriteriaList as StoppingCriteriaList,
)
from transformers.models.auto.configuration_auto import AutoConfig as AutoConfig
from transformers.models.auto.modeling_auto import (
    AutoModel as AutoModel,
    AutoModelForCausalLM as AutoModelForCausalLM,
    AutoModelForSequenceClassification as AutoModelForSequenceClassification,
    AutoModelForTokenClassification as AutoModelForTokenClassification,
)
from transformers.models.auto.tokenization_auto import AutoTokenizer as AutoTokenizer
from transformers.models.bert.configuration_bert import BertConfig as BertConfig
from transformers.models.bert.modeling_bert import BertForTokenClassification as BertForTokenClassification
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config as Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM as Gemma2ForCausalLM
from transformers.models.gpt2.configuration_gpt2 import GPT2Config as GPT2Config
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig as GPTNeoXConfig
from transformers.models.granite.configuration_granite import GraniteConfig as GraniteConfig
from transformers.models.granite.modeling_granite import GraniteForCausalLM as GraniteForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig as LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM as LlamaForCausalLM,
    LlamaForSequenceClassification as LlamaForSequenceClassification,
    LlamaForTokenClassification as LlamaForTokenClassification,
)
from transformers.models.mistral.configuration_mistral import MistralConfig as MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config as Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config as Qwen3Config
from transformers.models.rwkv.configuration_rwkv import RwkvConfig as RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM as RwkvForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast as PreTrainedTokenizerFast
from transformers.trainer_callback import TrainerCallback as TrainerCallback
from transformers.utils.quantization_config import GgufConfig as GgufConfig

__version__: str
