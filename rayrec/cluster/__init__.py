"""Ray: joining or starting it, and the room that a run takes there."""
