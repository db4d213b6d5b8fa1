import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AccessControlEntryFilter;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourcePatternFilter;
import org.apache.kafka.common.resource.ResourceType;

/** Arguments: bootstrap servers, "allow" or "withdraw", user, topic, operations. */
public class Acls {
    public static void main(String[] arguments) throws Exception {
        String principal = "User:" + arguments[2];
        String topic = arguments[3];
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", arguments[0]))) {
            for (int i = 4; i < arguments.length; i++) {
                AclOperation operation = AclOperation.fromString(arguments[i]);
                if (arguments[1].equals("allow")) {
                    ResourcePattern pattern = new ResourcePattern(ResourceType.TOPIC, topic, PatternType.LITERAL);
                    AccessControlEntry entry =
                        new AccessControlEntry(principal, "*", operation, AclPermissionType.ALLOW);
                    admin.createAcls(List.of(new AclBinding(pattern, entry))).all().get();
                } else {
                    ResourcePatternFilter pattern =
                        new ResourcePatternFilter(ResourceType.TOPIC, topic, PatternType.LITERAL);
                    AccessControlEntryFilter entry =
                        new AccessControlEntryFilter(principal, "*", operation, AclPermissionType.ALLOW);
                    admin.deleteAcls(List.of(new AclBindingFilter(pattern, entry))).all().get();
                }
            }
        }
    }
}
