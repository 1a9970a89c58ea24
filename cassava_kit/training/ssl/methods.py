"""The self-supervised methods, one line each in `SSL_METHODS`; `configure` makes settings, `make_ssl_module` a network.

To add a method, write one file with a subclass of `SSLModule` (its loss) and one of `PretrainConfig` (its settings and
its paper's values), and add its line here. The settings of the kit's own are in `method_settings.py`: a network takes
seconds to load, and who looks at a finished run needs none.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cassava_kit.errors import UserError
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.method_settings import METHOD_SETTINGS

if TYPE_CHECKING:
    from cassava_kit.training.ssl.module import SSLModule

# Name -> module:class. Loaded when used, so that listing recipes does not import torch.
SSL_METHODS = {
    "simclr": "cassava_kit.training.ssl.simclr:SimCLR",
    "moco": "cassava_kit.training.ssl.moco:MoCo",
    "byol": "cassava_kit.training.ssl.byol:BYOL",
    "swav": "cassava_kit.training.ssl.swav:SwAV",
}


def load_method(name: str) -> type[SSLModule]:
    """Return the class of a method.

    Raises:
        UserError: there is no such method.
    """
    if name not in SSL_METHODS:
        raise UserError(f"method must be one of {', '.join(SSL_METHODS)}, got {name!r}")
    module, _, attribute = SSL_METHODS[name].partition(":")
    loaded: type[SSLModule] = getattr(import_module(module), attribute)
    return loaded


def configure(method: str, **settings: Any) -> PretrainConfig:
    """Return a method's settings: its paper's, but for those given.

    Raises:
        UserError: a value that does not fit, in one line.

    Example:
        >>> configure("byol", epochs=40).momentum
        0.996
    """
    own = METHOD_SETTINGS.get(method)
    return (own or load_method(method).config_class).from_values({"method": method, **settings})


def make_ssl_module(config: PretrainConfig, *, init: Path | None = None) -> SSLModule:
    """Return the method's module on the configuration's backbone, random or from a file of weights."""
    import torch

    from cassava_kit.models.network import args_for_size, create_model
    from cassava_kit.models.weights import load_weights

    args = args_for_size(config.backbone, config.image_size, config.model_args)
    backbone = create_model(config.backbone, 0, model_args=args)
    if init is not None:
        load_weights(backbone, init)
    return load_method(config.method)(config, backbone.to(memory_format=torch.channels_last))
