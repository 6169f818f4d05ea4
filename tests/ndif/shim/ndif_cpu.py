"""A model actor for a machine without CUDA.

Chosen by the server's own setting ``NDIF_DEFAULT_MODEL_ACTOR_CLASS=ndif_cpu.CPUModelActor``. Only the
two methods that call ``torch.cuda`` are replaced; everything else is the server's.
"""

from __future__ import annotations

import gc
import logging

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

logger = logging.getLogger("ndif.modeling")


class CPUModelDeployment(BaseModelDeployment):
    """The stock deployment, with the model on the CPU."""

    CACHEABLE = False  # parking weights outside the GPU makes no sense here: evict outright

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        logger.info("Loaded %s onto the CPU", self.model_key)
        return model

    def cleanup(self) -> None:
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


# No CPU is reserved, so that the number of models is bounded by their declared memory, as on a real
# node, and Ray need not be told of more cores (it starts one idle worker for each).
@ray.remote(num_cpus=0, max_restarts=-1)
class CPUModelActor(CPUModelDeployment):
    """One replica of one model."""
