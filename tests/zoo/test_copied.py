"""Every kind of model on memory that is copied, as on a GPU (`DeviceMemory`), played on the CPU."""

from __future__ import annotations

import pytest
import torch
from models import MODELS
from test_zoo import recipe_of

from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.state.tensors import CPU, named_tensors, spans, specs_of, whole_views
from evener.wire.layout import Layout
from evener.worker.compute.device_memory import DeviceMemory
from evener.worker.compute.towers import Towers


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_copied_memory_computes_what_one_in_the_memory_that_travels_does(kind):
    found = []
    for copied in (False, True):
        torch.manual_seed(0)
        recipe = recipe_of(kind)
        model = recipe.model()
        layout = Layout(specs_of(model, recipe.changing))
        parameters, gradients = (torch.zeros(layout.nbytes, dtype=torch.uint8).numpy().data for _ in range(2))
        memory = None
        if copied:
            devices = dict.fromkeys(spans(layout), CPU)
            memory = DeviceMemory(layout, devices, parameters=parameters, gradients=gradients, direct=False)
        towers = Towers(model, recipe, layout, parameters=parameters, gradients=gradients, seed=0, memory=memory)
        batches, losses = Batches(as_data(recipe.data()).train, batch_size=6, seed=0), []
        for lease in range(3):
            losses.append(towers.begin(batches.batch(lease), lease))
            towers.collect()
        assert towers.notes == []  # nothing that such a model does is state which would be lost
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
        found.append((losses, tensors, {name: view.clone() for name, view in whole_views(layout, gradients).items()}))

    (losses, tensors, gradients), (others, their_tensors, their_gradients) = found
    assert losses == others
    assert all(torch.equal(tensors[name], their_tensors[name]) for name in tensors)
    assert all(torch.equal(gradients[name], their_gradients[name]) for name in gradients)
