"""What SQLAlchemy's dialect compliance suite may ask of this dialect, where it is not what the suite supposes of any database.

SQLite's own dialects answer the same; `wasm/tests/compliance` runs the suite on both.
"""

from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

SUPPORTED = """
    aggregate_order_by autocommit boolean_col_expressions check_constraint_reflection computed_columns
    computed_columns_reflect_persisted computed_columns_stored computed_columns_virtual create_table_as create_temp_table_as ctes
    ctes_with_values date_historic datetime_historic datetime_literals except_ expression_server_defaults fetch_expression
    fetch_offset_with_options fk_constraint_option_reflection_ondelete_noaction fk_constraint_option_reflection_ondelete_restrict
    fk_constraint_option_reflection_onupdate_restrict float_or_double_precision_behaves_generically
    foreign_key_constraint_name_reflection foreign_key_constraint_option_reflection_ondelete
    foreign_key_constraint_option_reflection_onupdate has_temp_table index_ddl_if_exists indexes_check_column_order
    indexes_with_expressions infinity_floats inline_check_constraint_reflection intersect isolation_level json_array_indexes json_type
    legacy_unconditional_json_extract mod_operator_as_percent_sign non_updating_cascade nullsordering nvarchar_types
    order_by_collation order_by_label_with_expression percent_schema_names precision_numerics_enotation_small
    precision_numerics_retains_significant_digits reflect_table_options reflects_pk_names regexp_match repeated_column_foreign_keys
    repeated_remote_col_foreign_keys server_defaults skip_autocommit_rollback supports_bitwise_and supports_bitwise_not
    supports_bitwise_or supports_bitwise_shift supports_bitwise_xor table_ddl_if_exists temp_table_names temporary_views tuple_in
    tuple_in_w_empty unicode_ddl update_from view_column_reflection view_reflection views window_functions window_range
    window_range_numeric
"""

UNSUPPORTED = """
    foreign_keys implicitly_named_constraints independent_connections independent_readonly_connections
    json_index_supplementary_unicode_element nested_aggregates numeric_received_as_decimal_untyped on_update_cascade
    on_update_or_deferrable_fks
"""
"""Foreign keys are off unless a connection turns them on, and a database in memory has one connection."""

EXPECTED_TO_FAIL = """
    parens_in_union_contained_select_w_limit_offset parens_in_union_contained_select_wo_limit_offset
    precision_numerics_many_significant_digits cast_precision_numerics_many_significant_digits
"""
"""SQLite cannot; the suite runs these and would report it if it could."""


class Requirements(SuiteRequirements):
    """SQLite by sql.js, in memory."""

    def get_order_by_collation(self, config: Any) -> str:
        """A collation that is there."""
        return "NOCASE"

    def get_isolation_levels(self, config: Any) -> dict[str, Any]:
        """The isolation levels, and which one a connection has at first."""
        dialect = config.db.dialect
        return {"default": dialect.default_isolation_level, "supported": dialect.get_isolation_level_values(None)}


for _name in SUPPORTED.split():
    setattr(Requirements, _name, property(lambda _: exclusions.open()))  # type: ignore[no-untyped-call]
for _name in UNSUPPORTED.split():
    setattr(Requirements, _name, property(lambda _: exclusions.closed()))  # type: ignore[no-untyped-call]
for _name in EXPECTED_TO_FAIL.split():
    setattr(Requirements, _name, property(lambda _: exclusions.fails("SQLite")))  # type: ignore[no-untyped-call]
