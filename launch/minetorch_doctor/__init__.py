"""``minetorch-doctor``: checks whether machines, network and storage are ready for a job."""
