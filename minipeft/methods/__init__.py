"""Every fine-tuning method, one short file each, and `attach`, which puts one on a model."""

from .adalora import AdaLoRA
from .adapter import Houlsby, Parallel, Pfeiffer
from .adapter_drop import AdapterDrop, adapter_drop
from .attach import Attachment, Method, activate, attach, mixed
from .bitfit import BitFit
from .combine import combine
from .compacter import Compacter
from .dora import DoRA
from .early_exit import EarlyExit
from .exit_rules import RULES, Confident
from .exit_training import Joint, SelfDistilled, TwoStage
from .fisher import FisherMask, fisher_importance
from .full import Full
from .fusion import Fusion
from .head import Head
from .ia3 import IA3
from .layer_skip import ExitLoss, draft_and_verify, layer_dropout
from .layernorm import LayerNormTuning
from .lora import LoRA
from .lora_plus import LoRAPlus
from .mask import RandomMask
from .nf4 import dequantise, quantise
from .output import OutputTuning
from .pissa import PiSSA
from .prefix import Prefix
from .rslora import RsLoRA
from .soft_prompt import SoftPrompt
from .targets import match
from .task_embedding import TaskEmbedding
from .token_exit import TokenExit
from .top_k import TopK
from .unfreezing import GradualUnfreezing, discriminative

METHODS = {method.name: method for method in (
    Full, Head, TopK, BitFit, LayerNormTuning, RandomMask, FisherMask, LoRA, RsLoRA, LoRAPlus, DoRA, PiSSA, AdaLoRA, IA3, Houlsby,
    Pfeiffer, Parallel, Compacter, Prefix, SoftPrompt, TaskEmbedding, OutputTuning)}

__all__ = ["AdapterDrop", "Attachment", "Confident", "EarlyExit", "ExitLoss", "Fusion", "GradualUnfreezing", "Joint", "METHODS",
           "Method", "RULES", "SelfDistilled", "TokenExit", "TwoStage", "activate", "adapter_drop", "attach", "combine",
           "dequantise", "discriminative", "draft_and_verify", "fisher_importance", "layer_dropout", "match", "mixed", "quantise",
           *(method.__name__ for method in METHODS.values())]
