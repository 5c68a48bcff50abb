"""What TensorFlow itself computes: writes tensorflow_values.json, which tests/test_tensorflow.py reads.

Run it once, with a Python that has TensorFlow, outside of the tests:

    python -m venv tfvenv && tfvenv/bin/pip install "tensorflow-cpu==2.21.*"
    tfvenv/bin/python tests/data/make_tensorflow_values.py
"""

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

V1 = tf.compat.v1
STEPS = 60
WIDTH = 6

#: (class of tf.compat.v1.train, without "Optimizer"; its arguments)
OPTIMIZERS = [
    ("Adam", {"learning_rate": 0.01}),
    ("Adam", {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}),
    ("RMSProp", {"learning_rate": 0.01}),
    ("RMSProp", {"learning_rate": 0.01, "decay": 0.8, "momentum": 0.9, "epsilon": 0.001}),
    ("RMSProp", {"learning_rate": 0.01, "centered": True}),
    ("RMSProp", {"learning_rate": 0.02, "momentum": 0.5, "centered": True, "epsilon": 0.01}),
    ("Adagrad", {"learning_rate": 0.1}),
    ("Adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 1.0}),
    ("Adadelta", {}),
    ("Adadelta", {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6}),
    ("Ftrl", {"learning_rate": 0.1}),
    ("Ftrl", {"learning_rate": 0.1, "l1_regularization_strength": 0.3, "l2_regularization_strength": 0.2}),
    (
        "Ftrl",
        {
            "learning_rate": 0.2,
            "learning_rate_power": -0.7,
            "initial_accumulator_value": 0.5,
            "l1_regularization_strength": 0.01,
            "l2_shrinkage_regularization_strength": 0.05,
            "beta": 0.3,
        },
    ),
    ("Ftrl", {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "l1_regularization_strength": 0.1}),
    ("ProximalAdagrad", {"learning_rate": 0.1}),
    ("ProximalAdagrad", {"learning_rate": 0.1, "l1_regularization_strength": 0.2, "l2_regularization_strength": 0.1}),
    ("GradientDescent", {"learning_rate": 0.1}),
    ("Momentum", {"learning_rate": 0.1, "momentum": 0.9}),
    ("Momentum", {"learning_rate": 0.1, "momentum": 0.9, "use_nesterov": True}),
]

AROUND = [0, 1, 9, 10, 11, 19, 20, 21, 29, 30, 31, 69, 70, 71, 99, 100, 101, 149, 150, 151, 1000]
#: (function of tf.compat.v1.train, its arguments besides the step, by name)
SCHEDULES = [
    ("exponential_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.9}),
    ("exponential_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.9, "staircase": True}),
    ("exponential_decay", {"learning_rate": 0.01, "decay_steps": 14.37, "decay_rate": 0.99, "staircase": True}),
    ("natural_exp_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.05}),
    ("natural_exp_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.05, "staircase": True}),
    ("inverse_time_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5}),
    ("inverse_time_decay", {"learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5, "staircase": True}),
    ("piecewise_constant", {"boundaries": [10, 20, 100], "values": [1.0, 0.5, 0.1, 0.01]}),
    ("polynomial_decay", {"learning_rate": 0.1, "decay_steps": 100}),
    ("polynomial_decay", {"learning_rate": 0.1, "decay_steps": 10, "end_learning_rate": 0.01, "power": 0.5}),
    ("polynomial_decay", {"learning_rate": 0.1, "decay_steps": 10, "power": 2.0, "cycle": True}),
    ("cosine_decay", {"learning_rate": 0.1, "decay_steps": 100}),
    ("cosine_decay", {"learning_rate": 0.1, "decay_steps": 30, "alpha": 0.1}),
    ("cosine_decay_restarts", {"learning_rate": 0.1, "first_decay_steps": 10}),
    ("cosine_decay_restarts", {"learning_rate": 0.1, "first_decay_steps": 10, "t_mul": 1.0, "m_mul": 0.9}),
    (
        "cosine_decay_restarts",
        {"learning_rate": 0.1, "first_decay_steps": 20, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.05},
    ),
    ("linear_cosine_decay", {"learning_rate": 0.1, "decay_steps": 100}),
    ("linear_cosine_decay", {"learning_rate": 0.1, "decay_steps": 30, "num_periods": 2.0, "alpha": 0.1, "beta": 0.01}),
]


def gradient(step: int) -> list[float]:
    """Of six elements: large, small, tiny, zero, of both signs, zero at first. The tests have a twin of this."""
    wave = ((step * 37) % 19 - 9) / 9
    return [2.0 + wave, 0.05 * wave, 1e-7 * (1 + wave), 0.0, wave, 0.0 if step < 5 else 0.5 * wave - 0.2]


def trained(name: str, options: dict, dtype: tf.DType) -> dict[str, list[float]]:
    """The parameters after some of the steps."""
    with tf.Graph().as_default(), V1.Session() as session:
        value = V1.get_variable("value", initializer=tf.constant([1.0, -1.0, 0.5, 0.25, -0.5, 2.0], dtype))
        gradients = V1.placeholder(dtype, [WIDTH])
        train = getattr(V1.train, f"{name}Optimizer")(**options).apply_gradients([(gradients, value)])
        session.run(V1.global_variables_initializer())
        found = {}
        for step in range(STEPS):
            session.run(train, {gradients: gradient(step)})
            if step + 1 in (1, 2, 10, STEPS):
                found[str(step + 1)] = [float(number) for number in session.run(value)]
        return found


def rates(name: str, options: dict) -> list[float]:
    with tf.Graph().as_default(), V1.Session() as session:
        step = V1.placeholder(tf.int64, [])
        arguments = {"x" if name == "piecewise_constant" else "global_step": step, **options}
        rate = getattr(V1.train, name)(**arguments)
        return [float(session.run(rate, {step: at})) for at in AROUND]


def _listed(value: object) -> str:
    """JSON with one line for each case."""
    if isinstance(value, list) and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(case) for case in value) + "\n]"
    return json.dumps(value)


def main() -> None:
    values = {
        "tensorflow": tf.__version__,
        "optimizers": [
            {
                "name": name,
                "options": options,
                "float32": trained(name, options, tf.float32),
                # ProximalAdagrad takes float32 only
                "float64": None if name.startswith("Proximal") else trained(name, options, tf.float64),
            }
            for name, options in OPTIMIZERS
        ],
        "steps": AROUND,
        "schedules": [{"name": name, "options": options, "rates": rates(name, options)} for name, options in SCHEDULES],
    }
    lines = [f'"{name}": ' + _listed(value) for name, value in values.items()]
    Path(__file__).with_name("tensorflow_values.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.write(f"TensorFlow {tf.__version__}: {len(OPTIMIZERS)} optimizers, {len(SCHEDULES)} schedules\n")


if __name__ == "__main__":
    main()
