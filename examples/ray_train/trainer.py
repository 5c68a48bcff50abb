import argparse
import tempfile
from pathlib import Path

import ray.train
import torch
from digits import accuracy, digits, net
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader


def train(config):
    model = prepare_model(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    loader = prepare_data_loader(DataLoader(digits(), batch_size=config["batch_size"], shuffle=True))
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(config["epochs"]):
        if ray.train.get_context().get_world_size() > 1:
            loader.sampler.set_epoch(epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), labels)
            loss.backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save(model.module.state_dict(), Path(directory) / "model.pt")
                checkpoint = Checkpoint.from_directory(directory)
            ray.train.report({"accuracy": accuracy(model)}, checkpoint=checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", default="runs")
    storage = Path(parser.parse_args().storage).absolute()
    trainer = TorchTrainer(
        train,
        train_loop_config={"lr": 0.1, "batch_size": 50, "epochs": 5},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="digits", storage_path=str(storage)),
    )
    print(trainer.fit().metrics)
