# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions of the Admin API, as far as the stand-in for qubesd raises them."""


class QubesException(Exception):
    pass


class QubesVMNotFoundError(QubesException, KeyError):
    pass


class QubesVMInUseError(QubesException):
    pass


class QubesDaemonAccessError(QubesException):
    pass


class QubesNoSuchPropertyError(QubesException, AttributeError):
    pass


class QubesPropertyValueError(QubesException, ValueError):
    pass


class QubesFeatureNotFoundError(QubesException, KeyError):
    pass


class QubesVMError(QubesException):
    pass
