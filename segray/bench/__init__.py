"""A minute's measurement of a sweep file on the machine at hand."""
