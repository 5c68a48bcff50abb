"""Actor-critic on a cart with a pole: no data set, an episode at a time, an update after each."""

import argparse
import json
import math
import random
from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.distributions import Categorical

import evener

torch.set_num_threads(1)

SavedAction = namedtuple("SavedAction", ["log_prob", "value"])


class CartPole:
    """The equations of Barto, Sutton and Anderson, as in every gym."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def reset(self):
        self.state = [self.random.uniform(-0.05, 0.05) for _ in range(4)]
        return self.state

    def step(self, action):
        x, x_dot, theta, theta_dot = self.state
        force = 10.0 if action == 1 else -10.0
        cos, sin = math.cos(theta), math.sin(theta)
        temp = (force + 0.05 * theta_dot**2 * sin) / 1.1
        theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        x_acc = temp - 0.05 * theta_acc * cos / 1.1
        self.state = [x + 0.02 * x_dot, x_dot + 0.02 * x_acc, theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc]
        done = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 12 * math.pi / 180
        return self.state, 1.0, done


class Policy(nn.Module):
    """Actor and critic in one model."""

    def __init__(self):
        super().__init__()
        self.affine1 = nn.Linear(4, 128)
        self.action_head = nn.Linear(128, 2)
        self.value_head = nn.Linear(128, 1)
        self.saved_actions = []
        self.rewards = []

    def forward(self, x):
        x = F.relu(self.affine1(x))
        return F.softmax(self.action_head(x), dim=-1), self.value_head(x)


def select_action(model, state):
    probs, state_value = model(torch.tensor(state))
    m = Categorical(probs)
    action = m.sample()
    model.saved_actions.append(SavedAction(m.log_prob(action), state_value))
    return action.item()


def finish_episode(model, optimizer, gamma):
    """One update from the episode that is over; its loss."""
    R = 0
    returns = []
    for r in model.rewards[::-1]:
        R = r + gamma * R
        returns.insert(0, R)
    returns = torch.tensor(returns)
    returns = (returns - returns.mean()) / (returns.std() + 1e-5)

    policy_losses, value_losses = [], []
    for (log_prob, value), R in zip(model.saved_actions, returns, strict=True):
        advantage = R - value.item()
        policy_losses.append(-log_prob * advantage)
        value_losses.append(F.smooth_l1_loss(value, torch.tensor([R])))

    optimizer.zero_grad()
    loss = torch.stack(policy_losses).sum() + torch.stack(value_losses).sum()
    loss.backward()
    optimizer.step()
    del model.rewards[:]
    del model.saved_actions[:]
    return loss.item()


def main():
    parser = argparse.ArgumentParser(description="PyTorch actor-critic example")
    parser.add_argument("--gamma", type=float, default=0.99, metavar="G")
    parser.add_argument("--seed", type=int, default=543, metavar="N")
    parser.add_argument("--log-interval", type=int, default=10, metavar="N")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--longest", type=int, default=100, help="steps of an episode")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--losses", metavar="FILE")
    args = parser.parse_args()
    ev = evener.join()

    env = CartPole(args.seed)
    torch.manual_seed(args.seed)

    model = Policy()
    optimizer = optim.Adam(model.parameters(), lr=args.lr)
    model, optimizer = ev.prepare(model, optimizer)
    running_reward = 10

    for i_episode in range(1, args.episodes + 1):
        if ev.should_stop() or ev.step >= args.episodes:
            break
        state = env.reset()
        ep_reward = 0
        for _ in range(args.longest):  # don't loop forever while learning
            action = select_action(model, state)
            state, reward, done = env.step(action)
            model.rewards.append(reward)
            ep_reward += reward
            if done:
                break

        running_reward = 0.05 * ep_reward + (1 - 0.05) * running_reward
        loss = finish_episode(model, optimizer, args.gamma)
        ev.log({"loss": loss, "reward": running_reward})
        if args.losses:
            with open(args.losses, "a") as file:
                file.write(json.dumps(loss) + "\n")

        if i_episode % args.log_interval == 0:
            print(f"Episode {i_episode}\tLast reward: {ep_reward:.2f}\tAverage reward: {running_reward:.2f}")
        if running_reward > 0.95 * args.longest:
            print(f"Solved! Running reward is now {running_reward:.2f}, the last episode ran to {ep_reward} steps!")
            break


if __name__ == "__main__":
    main()
