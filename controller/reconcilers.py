"""The reconciler of each kind that the controller reconciles. A new one is an entry here."""

from typing import Any

from controller.installation.reconciler import InstallationReconciler
from controller.kind_reconciler import KindReconciler
from controller.vm.reconciler import VmReconciler
from controller.vmi.reconciler import LauncherPodReconciler

RECONCILERS: tuple[type[KindReconciler[Any, Any]], ...] = (VmReconciler, LauncherPodReconciler, InstallationReconciler)
