"""Report the trained seeds of run.py: tables, intervals, published runs, figures."""

from analysis.compare import report_seeds
from analysis.figures import draw_after_training
from analysis.published import compare_with_published
from analysis.tables import append_results
from experiments.options import RunOptions
from experiments.train import TrainedSeeds
from utils.device import choose_device
from utils.log import logger


def report_runs(trained: TrainedSeeds, options: RunOptions) -> None:
    """Append the results to the tables over seeds, draw every run, and log how they compare.

    Args:
        trained: The seeds of a command.
        options: The options of the command.
    """
    dataset_name = trained.settings.dataset_name
    table = append_results(options.res_save_dir, dataset_name, options.name, trained.metrics)
    logger.info(f"Results saved to {table}.")
    if len(trained.folders) > 1:
        report_seeds(trained.folders, options.res_save_dir, dataset_name, options.name)
    if options.figures:
        for folder in trained.folders.values():
            draw_after_training(folder, choose_device(options.device), trained.features)
    for folder in trained.folders.values():
        line = compare_with_published(folder)
        if line:
            logger.info(line)
